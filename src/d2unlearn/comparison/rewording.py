"""What an entry's raw weights tell of forgotten test questions in the wordings that judge. Only a run's evaluation asks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from d2unlearn.attacks.answering import attacked_model
from d2unlearn.attacks.reading import Reading
from d2unlearn.attacks.wordings import ANY, AskingOtherwise, any_of, ask_otherwise, wording_readings
from d2unlearn.audit.judging import judging_hash, judging_wordings
from d2unlearn.audit.parts import drawn
from d2unlearn.comparison.context import RunContext
from d2unlearn.comparison.entries import load_raw
from d2unlearn.comparison.outcomes import OTHER_WORDS
from d2unlearn.comparison.records import SetResult, group_numbers
from d2unlearn.metrics.summary import groups_of, set_metric
from d2unlearn.schema import Example
from d2unlearn.wordings.wording import Material


def told_reworded(context: RunContext, folder: str) -> SetResult:
    """At most `wording_rows` of the forgotten test questions, the same in every run, each in every wording.

    Named after the wordings' number and the hash of their table: runs judged by another table are not compared.
    """
    settings, questions = context.settings, context.questions
    seed, wordings = settings.seeds[0], judging_wordings()
    asked = next(test.examples for test in questions.tests if test.name == "forget")
    rows = drawn(asked, settings.wording_rows, seed)
    outcomes = ask_otherwise(
        attacked_model(load_raw(folder, settings.dtype), raw=True, batch_size=settings.eval_batch_size),
        rows,
        wordings,
        Material(benign=questions.retain, forgotten=questions.forget),
        AskingOtherwise(settings.max_new_tokens, seed=seed),
    )
    name = f"{OTHER_WORDS}.{len(wordings)}.{judging_hash()[:8]}"
    return reworded_result(name, rows, wording_readings("forget", outcomes, ("told",)))


def reworded_result(name: str, rows: Sequence[Example], readings: Sequence[Reading]) -> SetResult:
    """Of each question whether any wording tells it, and any of each family; NaN where none could ask it.

    readings: what is told, one a wording, all of these rows.
    """
    families: dict[str, list[Reading]] = {}
    for reading in readings:
        families.setdefault(str(reading.setting["family"]), []).append(reading)
    told = {ANY: any_of(readings, ANY).values, **{family: any_of(some, family).values for family, some in families.items()}}
    groups = groups_of(rows)
    metrics = tuple(
        replace(set_metric("told_rate", "forget", values, groups, seed=0), name=family) for family, values in told.items()
    )
    return SetResult(name, "forget", len(rows), metrics, group_numbers([row.group for row in rows]), told)
