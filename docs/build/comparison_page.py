"""docs/comparison.md with its figures, and its digest for docs/results.md: from the kept results alone, no number typed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from d2unlearn.comparison import tradeoff, win_tie_loss
from d2unlearn.comparison.markdown import parts_of, section_table, seeds_in_words
from d2unlearn.comparison.objective import RULE
from d2unlearn.comparison.outcomes import COMEBACK
from d2unlearn.comparison.output import read_results, tables_of
from d2unlearn.comparison.plan import Comparison, comparison_of, runs_of, standing
from d2unlearn.comparison.table import Section, SplitTable, everybody_in
from d2unlearn.comparison.words import who_wins
from d2unlearn.config import CompareSettings, load_settings
from d2unlearn.guards import GUARDS
from d2unlearn.methods import METHODS
from d2unlearn.report.figures import Drawing

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "experiments" / "comparison.yaml"
LIGHT = {"forget": "#bc4c00", "retain": "#0969da", "axis": "#59636e", "ink": "#1f2328", "series1": "#8250df"}
DARK = {"forget": "#f0883e", "retain": "#58a6ff", "axis": "#9198a1", "ink": "#e6edf3", "series1": "#bc8cff"}
FONT = "-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
DIGEST = {
    "Raw weights": (
        "forget.extraction_strength",
        "suite.forget_quality",
        "forget_paraphrased.leak_rate",
        "suite.model_utility",
        "retain.extraction_strength",
        COMEBACK,
        "cost.time",
    ),
    "Behind the guard": (
        "forget.guarded_refusal_rate",
        "forget_paraphrased.guarded_refusal_rate",
        "forget.guarded_leak_rate",
        "forget_paraphrased.guarded_leak_rate",
        "retain.guarded_refusal_rate",
        "retain_paraphrased.guarded_refusal_rate",
        "world_facts.guarded_refusal_rate",
    ),
}
"""The columns that docs/results.md shows, in two tables."""
DIGEST_INTRODUCTION = """## Methods side by side

Methods and guards, tuned with the same number of trials and judged once; forget05 shows the strongest of forget10 alone. All
columns, how parameters were chosen and what to read with care: [comparison.md](comparison.md). "Gate refuses" and leaks behind
it are of each model's own gate or guard; a method that refuses in words shows there as one that refuses little. "Whole authors,
20 steps" is the answer probability on nine tenths of the forgotten rows after relearning the other tenth; time is training
time. ¹ A guard: its weights are the original's.
"""
INTRODUCTION = """# Methods side by side

Made by `make docs` from the runs kept in `benchmarks/results/comparison`; `experiments/comparison.py` makes the runs.

Every method is trained by the same trainer on the same pairs of rows, with the same number of epochs and of trials: the
published parameters first, the others found by [optuna](https://optuna.org). A trial is chosen on validation questions. For
methods neither energy nor gate nor refusals enter that choice, and the training's last weights are taken, so that no energy
chooses an epoch either; guards are chosen by what they let through. What was chosen is then run with each seed and judged once
on test questions.

All forgotten rows are unlearned; questions of about a quarter of their authors choose, those of the others judge. Of the
retained questions, `retain` holds rows that no method was given; most of `retain paraphrased` are other wordings of rows that
it was given. Each trained model gets an energy gate, and each guard its threshold, from retained rows that training never saw,
at the same rate of false refusals. The oracle is a model that never knew; it and the original have no gate.

What each number means: [evaluation.md](evaluation.md). An answer leaks that holds at least half of the truth's words (ROUGE-L
recall); "told" is the mean of that recall behind the gate or guard. Questions that have no author, such as world facts, are
grouped in blocks of twenty.

## What to read with care

- The learning rate that everybody's trials start from was found for EUA, on forget10 with these models, before its questions
  were divided into validation and test. Five trials make up for some of that, not for all.
- forget05 is half of forget10, with an oracle of its own: no independent confirmation. Its contestants are the best by
  forget10's validation score, for which some of its test questions were asked. There are fewer of them and fewer authors:
  another difference may count there. Wins are to be counted within a split, not between them.
- Gradient ascent and CE-U have no term that keeps anything. Where none of their trials is worth anything, so many epochs at
  such rates are too much for them; fewer were not tried.
- A prompt guard, an input classifier and embeddings that are corrupted behind it (ECO) leave the weights alone: what they hide
  is still there. The classifier is fitted on the very questions whose refusal "gate refuses: forget" counts; those in other
  words say more. It is linear and reads the last state of a small model; ECO's authors fine-tune a RoBERTa for it. How often it
  misses says little about theirs.
- "Gate refuses" counts refusals by the energy gate or the guard. IDK, IDK-DPO and IDK+AP refuse in words, which no gate counts;
  corrupted embeddings lead to another answer. What users are told in the end is compared as well, whoever withholds it.
- These models know TOFU and little else: nothing here speaks about general ability, or about models a thousand times as large.
"""
OWN_DATA = """## On your own data

```yaml
# compare.yaml
model: ./model                        # what everybody starts from: a folder, or a name on the hub
output: ./comparison
methods: [eua, npo, simnpo, rmu]      # all of docs/methods.md unless named; eua is what the others are compared with
guards: [input_classifier]
seeds: [0, 1, 2]
trials: 5
splits:
  people:
    forget: forget.jsonl              # rows as in the README; `group` says which belong together (an author, a document)
    retain: retain.jsonl
    oracle: ./never-knew              # a model taught without the forget rows; without one, less is better without end
    also_forget: {in_other_words: paraphrased.jsonl}
    also_retain: {facts: facts.jsonl}
```

    d2unlearn compare --config compare.yaml --plan      # every run and how it stands
    d2unlearn compare --config compare.yaml --jobs 2    # do what is not done, two at once

The command can be killed at any time; started again, it goes on. Results lie in `results` inside the output, one JSON file a
run, and nothing is done twice; results of other rows, weights or settings are refused, not mixed in. Processes and machines
that share the folder share the work: start the command on each. `--key people/npo/seed-1` does one run alone, for a scheduler;
`--launcher "accelerate launch --num_processes 2"` trains each on two devices; `--backend ray --gpus 1` makes each a task of a
Ray cluster. At the end, `table.md` and `table.json` hold the tables, and `pages/index.html` leads from each method to its
energies and answers.

A quarter of the retained rows, 400 at most (`test_rows`), only judge; a gate that refuses at most 1% needs 405 retained rows or
more in all, fewer need a larger `max_false_refusal`. `group_size: 20` takes rows without `group` in blocks of twenty, as TOFU's
authors stand. Questions of a further set that belong to one group all together are taken to stand for themselves.

A split with `strongest: 4` and `strongest_of: people` takes on only the best of another one, and eua; `search` sets ranges or
values of a method's parameters; all other options are in [cli.md](cli.md#d2unlearn-compare). `experiments/comparison.yaml` is
the file of the comparison above.
"""


def comparison_pages(results: Path) -> dict[Path, str]:
    """The page and its figures, as they should be."""
    comparison, tables = kept_tables(results)
    parts = [INTRODUCTION, by_hand(comparison), state(comparison, results)]
    files: dict[Path, str] = {}
    for table in tables:
        parts.append(f"## {table.split}\n")
        for name, drawn, source in figures(table, everybody_in(tables)):
            parts.append(picture(name, drawn, results))
            files |= figure_files(name, drawn, source, results)
        parts += list(parts_of(table, rule=RULE))
    return {ROOT / "docs" / "comparison.md": "\n".join([*parts, OWN_DATA]), **files}


def comparison_section(results: Path) -> str:
    """The digest: per split the main columns of every contestant that is judged, and in words where EUA wins and loses."""
    parts = [DIGEST_INTRODUCTION]
    for table in kept_tables(results)[1]:
        columns = {each.key: each for section in table.sections for each in section.columns}
        rows = [row for row in table.rows if row.seeds]
        parts += [f"### {table.split}\n", f"{seeds_in_words(rows)}\n"]
        for title, keys in DIGEST.items():
            parts += [f"#### {title}\n", f"{section_table(Section(title, tuple(columns[key] for key in keys)), rows)}\n"]
        parts.append(who_wins(table))
    return "\n".join(parts)


def kept_tables(results: Path) -> tuple[Comparison, list[SplitTable]]:
    """The comparison that was asked for, and the table of every split that has a run."""
    comparison = comparison_of(load_settings(CompareSettings, SETTINGS, {}), methods=METHODS, guards=GUARDS)
    return comparison, tables_of(comparison, results)


def by_hand(comparison: Comparison) -> str:
    """The parameters that were set for the comparison, beside what is published."""
    said = [
        f"`{name}` of {contestant} is {value:g} ({getattr(METHODS[contestant](), name):g} as published)"
        for contestant, space in comparison.spaces.items()
        for name, value in space.fixed.items()
    ]
    return f"Set for this comparison, and not tried otherwise: {', '.join(said)}.\n" if said else ""


def state(comparison: Comparison, results: Path) -> str:
    """What is there and what is missing, split by split, and the command that goes on."""
    judged, tuned = read_results(results)
    scores = {each.key: each.best.score for each in tuned if each.kind == "method"}
    done = {each.key for each in (*judged, *tuned)}
    lines = ["## What is there\n"]
    for each in standing(comparison, done, scores):
        split = comparison.split(each.split)
        whose = f" (the {split.strongest} strongest of {split.strongest_of}, by validation score)" if split.strongest else ""
        said = {"complete": each.complete, "begun": each.begun, "not begun": each.missing}
        parts = [f"{words}: {', '.join(names)}" for words, names in said.items() if names]
        lines.append(f"- {each.split}{whose}: {'; '.join(parts) or 'not known yet'}.")
    if {run.key for run in runs_of(comparison, scores)} - done:
        lines.append("\n`python experiments/comparison.py --jobs 2` goes on with what is missing.")
    return "\n".join(lines) + "\n"


def figures(table: SplitTable, everybody: list[str]) -> Iterator[tuple[str, Drawing, bytes]]:
    """Name, drawing and what it was drawn from: the trade-off, and the proposed method against everybody."""
    for name, module, drawn, numbers in (
        (table.split, tradeoff, tradeoff.tradeoff(table, everybody=everybody), (table.rows, everybody)),
        (f"{table.split}-duels", win_tie_loss, win_tie_loss.duels(table), table.outcomes),
    ):
        if drawn is not None:
            yield name, drawn, Path(module.__file__).read_bytes() + repr(numbers).encode()


def picture(name: str, drawn: Drawing, results: Path) -> str:
    """A figure in both colours."""
    place = f"../{(results / name).relative_to(ROOT)}"
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{place}-dark.svg">\n'
        f'<img alt="{drawn.description}" src="{place}.svg">\n</picture>\n'
    )


def figure_files(name: str, drawn: Drawing, source: bytes, results: Path) -> dict[Path, str]:
    """A figure as files for both colours. What this very source drew is taken as it is: versions of matplotlib differ in bytes.

    source: the drawing's code, and the numbers that it draws.
    """
    paths = results / f"{name}.svg", results / f"{name}-dark.svg"
    mark = f"<!-- docs/build/comparison_page.py {hashlib.sha256(source).hexdigest()[:16]} -->"
    if all(path.is_file() and path.read_text(encoding="utf-8").endswith(f"{mark}\n") for path in paths):
        return {path: path.read_text(encoding="utf-8") for path in paths}
    svg = drawn.svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" font-family="{FONT}" ', 1)
    return {
        path: re.sub(r"var\(--(\w+)\)", lambda found, palette=palette: palette[found[1]], svg) + mark + "\n"
        for path, palette in zip(paths, (LIGHT, DARK), strict=True)
    }
