"""The whole way from Python: unlearn, calibrate the refusal, evaluate before and after, draw the page, and ask the result.

python examples/forget_and_report.py MODEL FORGET RETAIN OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from d2unlearn import GuardedModel, read_examples
from d2unlearn.commands import (
    CalibrateSettings,
    EvaluateSettings,
    ReportSettings,
    UnlearnSettings,
    calibrate,
    evaluate,
    report,
    unlearn,
)
from d2unlearn.schema import Evaluation
from d2unlearn.serialization import read_evaluation


def forget_and_report(model: str, forget: str, retain: str, output: str) -> Path:
    """Make `OUTPUT/artifact`, with a gate that refuses at most 5% of legitimate requests, and the page that shows it."""
    artifact = unlearn(UnlearnSettings(model, forget, retain, f"{output}/artifact"))
    calibrate(CalibrateSettings(str(artifact), retain, forget, max_false_refusal=0.05))
    before = evaluate(EvaluateSettings(model, forget, retain, f"{output}/before"))
    after = evaluate(EvaluateSettings(str(artifact), forget, retain, f"{output}/after"))
    for name, path in (("before", before), ("after", after)):
        print(f"{name}: {knowledge(read_evaluation(path))}")
    return report(ReportSettings(str(before), str(after), str(artifact), output=f"{output}/report.html"))


def knowledge(evaluation: Evaluation) -> str:
    """How likely the answers are, set by set, with how many rows and the interval that this is known to."""
    return ", ".join(
        f"{rows.name} answer probability {metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}], n = {metric.n}"
        for rows in evaluation.sets
        for metric in rows.metrics
        if metric.name == "answer_probability"
    )


if __name__ == "__main__":
    model, forget, retain, output = sys.argv[1:]
    print(forget_and_report(model, forget, retain, output))
    guarded = GuardedModel.from_pretrained(f"{output}/artifact")
    for answer in guarded.answer([row.prompt for row in read_examples(forget)[:3]]):
        print(f"{'refused' if answer.refused else 'answered'}: {answer.text}")
