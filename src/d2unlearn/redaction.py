"""Results without anybody's words: what an evaluation keeps when its texts are left out. Pure."""

from __future__ import annotations

from dataclasses import replace

from d2unlearn.schema import EvaluatedSet, Evaluation


def redacted(evaluation: Evaluation) -> Evaluation:
    """The evaluation without questions, answers and replies; ids, which may be names, are the sets' names with numbers.

    Numbers are the places in each set, so that an example is found again in another evaluation of the same rows. Noted under
    `redact` in the settings.
    """
    sets = tuple(_without_texts(each) for each in evaluation.sets)
    return replace(evaluation, sets=sets, settings={**evaluation.settings, "redact": True})


def is_redacted(evaluation: Evaluation) -> bool:
    """Whether `redacted` made it."""
    return bool(evaluation.settings.get("redact"))


def _without_texts(evaluated: EvaluatedSet) -> EvaluatedSet:
    examples = tuple(
        replace(
            example,
            example_id=f"{evaluated.name} {number}",
            question="",
            answer="",
            raw_answer="",
            guarded_answer=None if example.guarded_answer is None else "",
        )
        for number, example in enumerate(evaluated.examples, 1)
    )
    return replace(evaluated, examples=examples)
