"""The TOFU suite on three models, as a section of docs/results.md, and the tables of docs/evaluation.md.

Made from benchmarks/results/tofu-benchmark and from the suites' own tables: no number and no meaning is typed by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2unlearn.benchmark.conventions import DIFFERENCES, OPEN_UNLEARNING, OURS
from d2unlearn.benchmark.metrics import ForgetQuality, Membership, Metric, PrivLeak, Utility
from d2unlearn.benchmark.suites import LUME, MUSE, TOFU, YEARS, Suite
from d2unlearn.runtime import read_json
from d2unlearn.schema import GUARDED_PREFIX
from tables import table
from tofu_page import MODELS

Run = dict[str, Any]
Runs = Mapping[str, Run]
"""What was kept of each model, by its name."""
ANSWERS = ("leak_rate", "refusal_rate", "token_entropy", "repetition")
SETS = {
    "forget": "forget10",
    "retain": "retain90, 400 of its questions",
    "real_authors": "real authors",
    "world_facts": "world facts",
}
LABELS = {
    "leak_rate": "tells half of the truth or more",
    "refusal_rate": "refuses",
    "token_entropy": "token entropy",
    "repetition": "repetition",
}
TOLD_APART = 0.05
"""p-value of forget quality below which two models differ."""
SAME = 1e-4
"""Two conventions' numbers count as the same up to this."""


def read_suite(folder: Path, convention: str = OURS.name) -> dict[str, Run]:
    """The kept results of one convention, by model."""
    return {name: read_json(folder / f"{name}-{convention}.json") for name in MODELS}


# -- docs/results.md ----------------------------------------------------------------------------------------------------


def suite_section(folder: Path) -> str:
    """The section: what was run, warnings, every metric with its reading, and what the models say."""
    runs = read_suite(folder)
    gate = runs["unlearned"]["gate"]
    facts = (
        f"The gate refuses where `{gate['score']}` exceeds {gate['threshold']:.3f}, calibrated at "
        f"{gate['max_false_refusal']:.1%} false refusals."
    )
    return "\n".join(
        [
            HEAD,
            facts + "\n",
            "### Warnings\n",
            warnings(runs),
            "### Every metric\n",
            METRICS_HEAD,
            metric_table(runs),
            "### What is said\n",
            ANSWERS_HEAD,
            answer_table(runs),
        ]
    )


HEAD = f"""## The TOFU suite

`d2unlearn evaluate --benchmark tofu` on the model that knows all (original), the model that never saw the 400 answers (oracle),
and the unlearned one (full fine-tuning, seed 0); `experiments/tofu_benchmark.py` makes the runs. Counted by the convention
`{OURS.name}`; open-unlearning's numbers of the same models stand in
[evaluation.md](evaluation.md#both-conventions-on-the-same-models). In brackets: 95% bootstrap intervals, over authors where
questions come in twenties, else over questions.
"""

METRICS_HEAD = """\
A likelihood is of the weights and knows no gate, so only what is generated has a guarded number: ROUGE, and the utility with
that ROUGE beside raw likelihoods. n: questions scored. A reading compares the raw weights of the unlearned model with the
oracle where something should be gone, with the original where it should have stayed ("as": the intervals overlap). Most of the
retained questions were given to unlearning to keep; what becomes of questions that it never saw stands in the sections above.
"""

ANSWERS_HEAD = """\
Token entropy and repetition show gibberish (1 and 0 are language). Raw weights refuse in words, the guarded model by its gate;
on everything but forget10 a refusal is one too many.
"""


def warnings(runs: Runs) -> str:
    """What the evaluation itself warns of, model by model."""
    lines = []
    for name, run in runs.items():
        said = run["warnings"] or ["none"]
        lines += [f"- {name}: {each}" for each in said]
    return "\n".join(lines) + "\n"


def metric_table(runs: Runs) -> str:
    rows, unscored = [], dict[str, list[str]]()
    for key, metric in TOFU.metrics.items():
        found = {name: run["suite"][key] for name, run in runs.items()}
        one, guarded = found["unlearned"], runs["unlearned"]["suite"].get(f"{GUARDED_PREFIX}{key}")
        if all(each["value"] is None for each in found.values()):
            unscored.setdefault(one["reason"], []).append(f"`{key}`")
            continue
        cells = [cell(found[name]) for name in MODELS]
        rows.append([f"`{key}`", metric.better, str(one["n"]), *cells, cell(guarded), reading(metric, found)])
    for reason, keys in unscored.items():
        rows.append([", ".join(keys), "", "0", *["–"] * (len(MODELS) + 1), f"**not scored: {reason}**"])
    head = ["metric", "better", "n", *MODELS.values(), "unlearned, guarded", "reading"]
    return table(head, rows, "llrrrrrl")


def answer_table(runs: Runs) -> str:
    rows = []
    for place, title in SETS.items():
        for metric in ANSWERS:
            found = [run["sets"][place]["metrics"].get(metric) for run in runs.values()]
            guarded = runs["unlearned"]["sets"][place]["metrics"].get(f"{GUARDED_PREFIX}{metric}")
            better = found[0]["better"]
            n = str(runs["unlearned"]["sets"][place]["n"]) if metric == ANSWERS[0] else ""
            first = title if metric == ANSWERS[0] else ""
            rows.append([first, n, LABELS[metric], better, *map(cell, found), cell(guarded)])
    return table(["set", "n", "", "better", *MODELS.values(), "unlearned, guarded"], rows, "lrllrrrr")


def cell(found: Mapping[str, Any] | None) -> str:
    """A number with its interval; a dash for what there is none of."""
    if found is None or found["value"] is None:
        return "–"
    return f"{short(found['value'])} [{short(found['low'])}, {short(found['high'])}]"


def short(value: float | None) -> str:
    """Three decimals, or two digits of what is smaller than a hundredth."""
    if value is None:
        return "–"
    return f"{value:.2g}" if value and abs(value) < 0.01 else f"{value:.3f}"


def reading(metric: Metric, found: Mapping[str, Any]) -> str:
    """How to read the metric, and what the unlearned model's number says, in one line."""
    return f"{metric.meaning}; here **{verdict(metric, found)}**"


def verdict(metric: Metric, found: Mapping[str, Any]) -> str:
    one = found["unlearned"]
    if one["value"] is None:
        return f"not scored: {one['reason']}"
    if isinstance(metric, ForgetQuality):
        return "told apart from the oracle" if one["value"] < TOLD_APART else "not told apart from the oracle"
    gone = should_be_gone(metric)
    other, name = (found["oracle"], "the oracle's") if gone else (found["original"], "the original's")
    if one["low"] <= other["high"] and other["low"] <= one["high"]:
        return f"as {name}"
    higher = one["value"] > other["value"]
    side = f"{'above' if higher else 'below'} {name}"
    if not gone:
        return side if higher else f"{one['value'] / other['value']:.1%} of {name}"
    if one["better"] == "neither":
        return side
    if higher == (one["better"] == "higher"):
        return f"{side}: further than never knowing goes"
    left = (one["value"] - other["value"]) / (found["original"]["value"] - other["value"])
    return f"{side}: {left:.1%} of the way to the original's"


def should_be_gone(metric: Metric) -> bool:
    """Whether the metric is about the forget set, so that the oracle says what is right."""
    if isinstance(metric, Membership | PrivLeak | ForgetQuality):
        return True
    return not isinstance(metric, Utility) and all(TOFU.sets[name].kind == "forget" for name in metric.sets)


# -- docs/evaluation.md -------------------------------------------------------------------------------------------------


def evaluation_blocks(folder: Path) -> dict[str, str]:
    """Every table of docs/evaluation.md, by the name of its mark."""
    return {
        "tofu-metrics": suite_table(TOFU),
        "muse-metrics": suite_table(MUSE),
        "lume-metrics": suite_table(LUME),
        "years-metrics": suite_table(YEARS),
        "conventions": difference_table(),
        "conventions-measured": measured_table(folder),
    }


def suite_table(suite: Suite) -> str:
    """A suite's metrics; those that differ in a number alone share a row."""
    rows = []
    for key, metric in suite.metrics.items():
        if key in suite.own:
            continue
        summed = "yes" if key in suite.summary else ""
        rows.append([f"`{key}`", ", ".join(metric.sets) or "others above", metric.better, summed, metric.meaning])
    own = [f"`{key}`" for key in suite.own]
    if own:
        first = suite.metrics[suite.own[0]]
        rows.append([f"{own[0]} to {own[-1]}", "each fold", first.better, "", first.meaning])
    return table(["metric", "set", "better", "in the summary", "how to read it"], rows, "lllll")


def difference_table() -> str:
    rows = [[f"`{each.switch}`", each.touches, each.theirs, each.ours, each.effect] for each in DIFFERENCES]
    return table(["switch", "touches", "open-unlearning", "ours", "what it does to the number"], rows, "lllll")


def measured_table(folder: Path) -> str:
    """The metrics in which the two conventions differ on the kept models, side by side."""
    ours, theirs = read_suite(folder, OURS.name), read_suite(folder, OPEN_UNLEARNING.name)
    rows, same = [], []
    for key in TOFU.metrics:
        pairs = [(ours[name]["suite"][key]["value"], theirs[name]["suite"][key]["value"]) for name in MODELS]
        if all(a is None and b is None for a, b in pairs):
            continue
        if all(alike(a, b) for a, b in pairs):
            same.append(f"`{key}`")
        else:
            rows.append([f"`{key}`", *(short(value) for pair in pairs for value in pair)])
    head = ["metric", *(f"{model}, {who}" for model in MODELS for who in ("ours", "theirs"))]
    return table(head, rows, "l" + "r" * (len(head) - 1)) + f"\nThe same to {SAME:g} on all three: {', '.join(same)}.\n"


def alike(one: float | None, other: float | None) -> bool:
    """Both without a number, or two numbers that differ by `SAME` at most."""
    return one is other if one is None or other is None else abs(one - other) <= SAME
