"""docs/comparison.md with its figures, and its digest for docs/results.md: from the kept results alone, no number typed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from d2unlearn.comparison.markdown import parts_of, section_table, seeds_in_words
from d2unlearn.comparison.output import read_results, tables_of
from d2unlearn.comparison.records import Judged, Tuned
from d2unlearn.comparison.rule import RULE
from d2unlearn.comparison.table import Section, SplitTable
from d2unlearn.comparison.words import who_wins
from d2unlearn.methods import METHODS
from d2unlearn.report import tradeoff as drawing
from d2unlearn.report.tradeoff import tradeoff

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ROOT / "scripts" / "comparison.yaml"
LIGHT = {"forget": "#bc4c00", "retain": "#0969da", "axis": "#59636e", "ink": "#1f2328"}
DARK = {"forget": "#f0883e", "retain": "#58a6ff", "axis": "#9198a1", "ink": "#e6edf3"}
FONT = "-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
DIGEST = {
    "Raw weights": (
        "forget.extraction_strength",
        "suite.forget_quality",
        "forget_paraphrased.leak_rate",
        "suite.model_utility",
        "retain.extraction_strength",
        "comeback.first.20",
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

Every method and guard, tuned with the same number of trials and judged once. All columns, how parameters were chosen, and
which contestants are still to come: [comparison.md](comparison.md). Refusals and leaks behind the guard are of each model's own
gate or guard. "Whole authors, 20 steps" is the answer probability on nine tenths of the forgotten rows after relearning the
other tenth; time is training time. ¹ A guard: its weights are the original's.
"""
INTRODUCTION = """# Methods side by side

Made by `make docs` from the runs kept in `benchmarks/results/comparison`; `scripts/comparison.py` makes the runs.

Every method is trained by the same trainer on the same pairs of rows, with the same number of epochs and of trials: the
published parameters first, the others found by [optuna](https://optuna.org). A trial is chosen on validation questions, by a
rule in which no energy, gate or refusal enters, and the training's last weights are taken, so that no energy chooses an epoch
either. What was chosen is then trained with each seed and judged once on test questions: those of three quarters of the
forgotten authors, and retained rows that no method was given. Each model is given an energy gate, calibrated on retained rows
that training never saw, at the same rate of false refusals. The oracle is a model that never knew.

What this does not even out: the learning rate that everybody's trials start from was found for EUA, on forget10 with these
models. Five trials make up for some of that, not for all. Gradient ascent and CE-U have no term that keeps anything: where none
of their trials left any knowledge, so many epochs at such rates are too much for them; fewer were not tried.

A prompt guard, an input classifier and embeddings that are corrupted behind it (ECO) leave the weights alone: what they hide
is still there. The classifier is fitted on the very questions whose refusal "refused: forget" counts; those in other words say
more. Corrupted embeddings lead to another answer, not to a refusal, so their refusals are none by design.

These models know TOFU and little else: nothing here speaks about general ability, or about models a thousand times as large.
"""


def comparison_pages(results: Path) -> dict[Path, str]:
    """The page and its figures, as they should be."""
    settings, order, tables = kept_tables(results)
    judged, tuned = read_results(results)
    parts = [INTRODUCTION, state(settings, order, judged, tuned)]
    files: dict[Path, str] = {}
    for table in tables:
        parts.append(f"## {table.split}\n")
        figures = figure_files(table, results)
        parts += [picture(table, results)] if figures else []
        parts += list(parts_of(table, rule=RULE))
        files |= figures
    return {ROOT / "docs" / "comparison.md": "\n".join(parts), **files}


def comparison_section(results: Path) -> str:
    """The digest: per split the main columns of every contestant that is judged, and in words where EUA wins and loses."""
    parts = [DIGEST_INTRODUCTION]
    for table in kept_tables(results)[2]:
        columns = {each.key: each for section in table.sections for each in section.columns}
        rows = [row for row in table.rows if row.seeds]
        parts += [f"### {table.split}\n", f"{seeds_in_words(rows)}\n"]
        for title, keys in DIGEST.items():
            parts += [f"#### {title}\n", f"{section_table(Section(title, tuple(columns[key] for key in keys)), rows)}\n"]
        parts.append(who_wins(table))
    return "\n".join(parts)


def kept_tables(results: Path) -> tuple[dict[str, Any], list[str], list[SplitTable]]:
    """The comparison's settings, its contestants in order, and the table of every split that has a run."""
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    order = [*(settings.get("methods") or METHODS), *settings["guards"]]
    return settings, order, list(tables_of(results, list(settings["splits"]), settings["left_out"], order))


def state(settings: dict[str, object], order: list[str], judged: list[Judged], tuned: list[Tuned]) -> str:
    """What is there and what is missing, split by split, and the command that goes on."""
    lines = ["## What is there\n"]
    seeds = settings["seeds"]
    splits = settings["splits"]
    assert isinstance(seeds, list)
    assert isinstance(splits, dict)
    for name, split in splits.items():
        runs = [run for run in judged if run.split == name]
        names = {run.contestant for run in (*tuned, *runs) if run.split == name and run.kind != "as_is"}
        wanted = "strongest" in split and f"{split['strongest']} strongest of {split['strongest_of']}"
        whole = [each for each in order if len({run.seed for run in runs if run.contestant == each}) == len(seeds)]
        begun = [each for each in order if each in names and each not in whole]
        left = [] if wanted else [each for each in order if each not in names]
        said = [f"complete: {', '.join(whole) or 'none'}", f"begun: {', '.join(begun) or 'none'}"]
        said.append(f"not begun: {wanted or ', '.join(left) or 'none'}")
        lines.append(f"- {name}: {'; '.join(said)}.")
    return "\n".join([*lines, "\n`python scripts/comparison.py --jobs 2` goes on with what is missing.\n"])


def picture(table: SplitTable, results: Path) -> str:
    """The figure in both colours."""
    place = f"../{(results / table.split).relative_to(ROOT)}"
    drawn = tradeoff(table)
    assert drawn is not None
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{place}-dark.svg">\n'
        f'<img alt="{drawn.description}" src="{place}.svg">\n</picture>\n'
    )


def figure_files(table: SplitTable, results: Path) -> dict[Path, str]:
    """Both drawings of a split. What these very numbers drew is taken as it is: versions of matplotlib differ in bytes."""
    paths = results / f"{table.split}.svg", results / f"{table.split}-dark.svg"
    source = Path(drawing.__file__).read_bytes() + repr(table.rows).encode()
    mark = f"<!-- scripts/comparison_page.py {hashlib.sha256(source).hexdigest()[:16]} -->"
    if all(path.is_file() and path.read_text(encoding="utf-8").endswith(f"{mark}\n") for path in paths):
        return {path: path.read_text(encoding="utf-8") for path in paths}
    drawn = tradeoff(table)
    if drawn is None:
        return {}
    svg = drawn.svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" font-family="{FONT}" ', 1)
    return {
        path: re.sub(r"var\(--(\w+)\)", lambda found, palette=palette: palette[found[1]], svg) + mark + "\n"
        for path, palette in zip(paths, (LIGHT, DARK), strict=True)
    }
