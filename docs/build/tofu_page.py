"""docs/results.md and the README's table, from the kept runs alone: no number on them is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from d2unlearn.runtime import read_json
from tables import number, spread, table

Run = dict[str, Any]
Measure = Callable[[Run], float]
VARIANTS = {
    "full": "full fine-tuning",
    "deep_eua": "deep EUA (`--method deep_eua`), full fine-tuning",
    "lora": "LoRA, rank 16, merged",
    "qwen2": "second family: a tiny Qwen2 trained by experiments/second_family.py, full fine-tuning",
}
SETS = {
    "forget": "forget10, original wording",
    "forget_paraphrased": "forget10, paraphrased questions",
    "retain": "retain90, 400 questions that neither unlearning nor the gate saw",
    "retain_seen": "retain90, 400 other questions",
    "retain_paraphrased": "retain90, paraphrased questions",
    "real_authors": "real authors",
    "world_facts": "world facts",
}
KEPT = ("retain", "retain_seen", "real_authors", "world_facts")
HARMLESS = ("retain_paraphrased", "real_authors", "world_facts")
METRICS = {
    "extraction_strength": "extraction strength",
    "exact_memorization": "exact memorisation",
    "answer_probability": "answer probability",
    "rouge_l_recall": "ROUGE-L recall",
    "leak_rate": "leaks (ROUGE-L recall of 0.5 or more)",
    "token_entropy": "token entropy",
}


@dataclass(frozen=True)
class Target:
    """A number that the project set itself: how it is measured in one run, and when it holds."""

    text: str
    measure: Measure
    limit: Measure
    at_most: bool
    percent: bool = False

    def holds(self, run: Run) -> bool:
        value, limit = self.measure(run), self.limit(run)
        return value <= limit if self.at_most else value >= limit


def value(run: Run, model: str, name: str, metric: str) -> float:
    """The mean of a metric on a set; NaN when the run lacks it."""
    found = run["evaluations"][model]["sets"][name].get(metric)
    return math.nan if found is None else float(found[0])


def values(runs: Sequence[Run], model: str, name: str, metric: str, percent: bool = False) -> str:
    """What `value` says of the runs, as it is written."""
    return spread([value(run, model, name, metric) for run in runs], percent)


def targets() -> list[Target]:
    """What issue-sized promises became: every target of the first milestone, in the order they are stated."""
    known = ("extraction_strength", "answer_probability")
    pairs = (("forget", "retain", 0.999), ("forget_paraphrased", "retain_paraphrased", 0.99))
    return [
        *(gone(metric) for metric in known),
        *(stayed(name, metric) for name in KEPT for metric in known),
        *(told_apart(*pair) for pair in pairs),
        *(refused(name) for name in ("retain", *HARMLESS)),
        *(missed(name, bound) for name, bound in (("forget", 0.005), ("forget_paraphrased", 0.02))),
        *(leaks(name) for name in ("forget", "forget_paraphrased")),
        Target("minutes for `unlearn` and `calibrate` together", minutes, lambda run: 6.0, at_most=True),
    ]


def gone(metric: str, name: str = "forget") -> Target:
    on = "forget" if name == "forget" else SETS[name]
    return Target(
        f"raw weights: {METRICS[metric]} on {on} at most the oracle's + 0.02",
        lambda run: value(run, "unlearned", name, metric),
        lambda run: value(run, "oracle", name, metric) + 0.02,
        at_most=True,
    )


def stayed(name: str, metric: str) -> Target:
    return Target(
        f"raw weights: {METRICS[metric]} on {SETS[name]}, share of the original's",
        lambda run: value(run, "unlearned", name, metric) / value(run, "original", name, metric),
        lambda run: 0.97,
        at_most=False,
    )


def told_apart(forget: str, retain: str, bound: float) -> Target:
    return Target(
        f"AUROC of the gate's score, {SETS[forget]} against {SETS[retain]}",
        lambda run: float(run["evaluations"]["unlearned"]["separation"][f"auroc_gate_{forget}_vs_{retain}"][0]),
        lambda run: bound,
        at_most=False,
    )


def refused(name: str) -> Target:
    def rate(run: Run) -> float:
        return value(run, "unlearned", name, "guarded_refusal_rate")

    return Target(f"refused of {SETS[name]}", rate, lambda run: 0.01, at_most=True, percent=True)


def missed(name: str, bound: float) -> Target:
    def rate(run: Run) -> float:
        return 1 - value(run, "unlearned", name, "guarded_refusal_rate")

    return Target(f"missed of {SETS[name]}", rate, lambda run: bound, at_most=True, percent=True)


def leaks(name: str) -> Target:
    return Target(
        f"guarded leaks on {SETS[name]} at most the oracle's",
        lambda run: value(run, "unlearned", name, "guarded_leak_rate"),
        lambda run: value(run, "oracle", name, "leak_rate"),
        at_most=True,
        percent=True,
    )


def minutes(run: Run) -> float:
    """NaN for a run beside which other work went on."""
    return sum(run["seconds"].values()) / 60 if run["seconds"] else math.nan


def read_runs(folder: Path) -> dict[str, list[Run]]:
    """The kept runs of each variant, by seed."""
    runs: dict[str, list[Run]] = {}
    for path in sorted(folder.glob("*-seed-*.json")):
        run = read_json(path)
        runs.setdefault(run["variant"], []).append(run)
    return {name: sorted(runs[name], key=lambda run: run["seed"]) for name in VARIANTS if name in runs}


def results_page(folder: Path) -> str:
    """docs/results.md."""
    sections = [section(variant, runs) for variant, runs in read_runs(folder).items()]
    return "\n".join([HEAD, *sections]).rstrip() + "\n"


HEAD = """# Results

Made by `make docs` from the runs kept in `benchmarks/results/tofu`; `experiments/tofu_results.py` makes the runs.

TOFU forget10 / retain90 with a small Llama that knows all 4,000 answers (4.2M parameters), judged against the same model
trained without the 400 forgotten answers (the oracle). For each seed 400 retained questions are taken out of the retain file
first: neither unlearning nor calibration sees them, and the gate is judged on them. Every number is a mean over seeds with the
lowest and the highest seed in brackets. The intervals over questions of each seed are in the kept runs.

"Gone" means at rest: no relearning attack is made here. These models know TOFU and little else, so nothing here speaks about
general ability. The field's own suite, metric by metric, stands [at the end](#the-tofu-suite).
"""


def section(variant: str, runs: Sequence[Run]) -> str:
    """One variant: targets, knowledge, refusals, separation."""
    seeds = ", ".join(str(run["seed"]) for run in runs)
    rates = sorted({run["learning_rate"] for run in runs})
    updates = ", ".join(str(8 * count) for count in sorted({run["accumulation"] for run in runs}))
    facts = (
        f"Seeds {seeds}; learning rate {', '.join(f'{r:g}' for r in rates)} and {updates} pairs an update (auto); measured on: "
        f"{runs[0]['hardware']}."
    )
    note = "" if variant == "full" else " Shown beside the first, and not held to the same numbers."
    parts = {
        "Targets": target_table(runs),
        "What the weights know, and what the guarded model says": knowledge_table(runs),
        "Refusals": gate_table(runs),
        "Scores that the gate could have used": candidate_table(runs),
        "What each of those scores would have done": trial_table(runs),
        "Separation by score": "AUROC on the rows that the gate did not see.\n\n" + separation_table(runs),
    }
    head = f"## {VARIANTS[variant][0].upper()}{VARIANTS[variant][1:]}\n\n{facts}{note}\n"
    return "\n".join([head, *(f"### {title}\n\n{text}" for title, text in parts.items())])


def target_table(runs: Sequence[Run]) -> str:
    rows = []
    for target in targets():
        known = [run for run in runs if not math.isnan(target.measure(run))]
        measured, limits = [target.measure(run) for run in known], [target.limit(run) for run in runs]
        sign = "≤" if target.at_most else "≥"
        bound = f"{sign} {number(mean(limits), target.percent)}"
        verdict = verdict_of([target.holds(run) for run in known], len(runs))
        rows.append([target.text, bound, spread(measured, target.percent), verdict])
    return table(["target", "bound", "measured", ""], rows, "lrrl")


def verdict_of(held: Sequence[bool], n_runs: int) -> str:
    """In how many of the runs where it was measured a target holds."""
    if not held:
        return "not measured"
    counted = "" if len(held) == n_runs else f" (measured in {len(held)} of {n_runs} runs)"
    if all(held):
        return f"holds{counted}"
    return f"**{'falls short' if not any(held) else f'holds in {sum(held)} of {len(held)}'}**{counted}"


def knowledge_table(runs: Sequence[Run]) -> str:
    rows = []
    for name, title in SETS.items():
        for metric, label in METRICS.items():
            cells = [values(runs, model, name, metric) for model in MODELS]
            guarded = values(runs, "unlearned", name, f"guarded_{metric}")
            rows.append([title if metric == "extraction_strength" else "", label, *cells, guarded])
    return table(["set", "metric", *MODELS.values(), "unlearned, guarded"], rows, "llrrrr")


MODELS = {"original": "original", "oracle": "oracle", "unlearned": "unlearned, raw"}


def gate_table(runs: Sequence[Run]) -> str:
    rows = []
    for name, title in SETS.items():
        n = runs[0]["evaluations"]["unlearned"]["sets"][name]["n"]
        of_unlearned = [values(runs, "unlearned", name, f"guarded_{rate}", True) for rate in ("refusal_rate", "leak_rate")]
        rows.append([title, str(n), *of_unlearned, values(runs, "oracle", name, "leak_rate", True)])
    gate = runs[0]["gate"]
    thresholds = ", ".join(f"{run['gate']['threshold']:.3f} ({run['gate']['score_name']})" for run in runs)
    head = f"Calibrated at {gate['max_false_refusal']:.1%}; thresholds by seed: {thresholds}.\n\n"
    columns = ["set", "n", "refused", "guarded answers that hold half of the truth", "the oracle's answers that do"]
    return head + table(columns, rows, "lrrrr")


def candidate_table(runs: Sequence[Run]) -> str:
    """What calibration measured of each score, on validation rows against forget prompts, by which it chose."""
    measured = [{score["name"]: score for score in run["gate"]["measured"]["candidates"]} for run in runs]
    rows = []
    for name in measured[0]:
        chosen = sum(run["gate"]["score_name"] == name for run in runs)
        area = spread([scores[name]["auroc"] for scores in measured], digits=4)
        rates = [spread([scores[name][rate] for scores in measured], percent=True) for rate in ("fpr_at_95_tpr", "missed")]
        rows.append([name, area, *rates, f"{chosen} of {len(runs)}"])
    head = "On validation rows, which the threshold never sees, against forget prompts in their original wording.\n\n"
    return head + table(
        ["score", "AUROC", "false refusals at 95% caught", "missed at 1% false refusals", "chosen"], rows, "lrrrr"
    )


def trial_table(runs: Sequence[Run]) -> str:
    """What each score would have refused, at its conformal threshold and in the middle of the gap to the forget prompts."""
    first = runs[0]["scores"]
    sets = {
        name: SETS[name].split(",")[0] if name == "retain" else SETS[name] for name in first[next(iter(first))]["conformal"]
    }
    rows = []
    for score, thresholds in first.items():
        for threshold in thresholds:
            cells = []
            for name in sets:
                shares = [run["scores"][score][threshold][name] for run in runs]
                cells.append(spread([1 - share if name.startswith("forget") else share for share in shares], percent=True))
            rows.append([score if threshold == "conformal" else "", threshold, *cells])
    columns = [f"missed: {title}" if name.startswith("forget") else f"refused: {title}" for name, title in sets.items()]
    head = (
        "On rows that neither unlearning nor calibration saw. The gate takes the middle of the gap, which is never below the "
        "conformal threshold.\n\n"
    )
    return head + table(["score", "threshold", *columns], rows, "ll" + "r" * len(columns))


def separation_table(runs: Sequence[Run]) -> str:
    scores = {
        "gate": "gate's score",
        "prompt_energy": "energy at the last prompt position",
        "answer_energy": "mean energy over the true answer",
    }
    rows = []
    for forget in ("forget", "forget_paraphrased"):
        for retain in (name for name in SETS if not name.startswith("forget")):
            cells = []
            for score in scores:
                key = f"auroc_{score}_{forget}_vs_{retain}"
                found = [run["evaluations"]["unlearned"]["separation"].get(key, [math.nan])[0] for run in runs]
                cells.append(spread(found, digits=4))
            rows.append([SETS[forget], SETS[retain], *cells])
    return table(["forget", "against", *scores.values()], rows, "llrrr")


def readme_table(folder: Path) -> str:
    """The README's short table: the variant `full`, what a reader asks first."""
    runs = read_runs(folder).get("full", [])
    if not runs:
        return "\n"
    known = {
        "forget: extraction strength": ("forget", "extraction_strength"),
        "forget: answer probability": ("forget", "answer_probability"),
        "unseen retained: extraction strength": ("retain", "extraction_strength"),
        "world facts: extraction strength": ("world_facts", "extraction_strength"),
    }
    rows = [[title, *(values(runs, model, *of) for model in MODELS)] for title, of in known.items()]
    for name in ("forget", "forget_paraphrased", "retain", "retain_paraphrased", "world_facts"):
        rows.append([f"refused: {SETS[name]}", "", "", values(runs, "unlearned", name, "guarded_refusal_rate", True)])
    return "\n" + table(["", "original", "oracle (never knew)", "unlearned"], rows, "lrrr") + "\n"
