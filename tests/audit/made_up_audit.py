"""An audit's record made up by formulas: every shape of setting, every verdict, texts that would break a careless page."""

from __future__ import annotations

import math
from collections.abc import Mapping

from d2unlearn.attacks.reading import Measure, Setting
from d2unlearn.audit.records import AttackResult, Audit, AuditedModel, AuditedRows, SettingResult, ToldExample
from d2unlearn.schema import ClaimResult, MetricResult, Verdict

SPITEFUL = 'Who is <script>alert("x")</script> & co?'
MARGINS = {"probability": 0.02, "told": 0.01, "refused": 0.01, "picked": 0.05}
FAMILIES = ("politeness", "system_prompt", "role_play", "few_shot", "cloze", "typos", "exam", "backwards", "any")


def metric(name: str, value: float, *, half: float = 0.03, n: int = 100) -> MetricResult:
    """A share with an interval of so much on either side."""
    return MetricResult(name, value, max(0.0, value - half), min(1.0, value + half), n, 0, "lower")


def setting(
    keys: Mapping[str, Setting],
    artifact: float,
    oracle: float = math.nan,
    original: float = math.nan,
    *,
    measure: Measure = "answer_probability",
    rows: str = "forget",
    compared: bool = True,
) -> SettingResult:
    """One setting; models of which there is no number are left out."""
    given = {"artifact": artifact, "original": original, "oracle": oracle}
    values = {name: metric(measure, value) for name, value in given.items() if not math.isnan(value)}
    control = 0.0 if math.isnan(oracle) else oracle
    ends = (artifact - control, artifact - control - 0.02, artifact - control + 0.02) if compared else (math.nan,) * 3
    return SettingResult(dict(keys), measure, rows, values, *ends)


def attack(
    name: str,
    settings: tuple[SettingResult, ...],
    *,
    claim: str = "",
    guarded: bool = False,
    verdict: Verdict = "not shown",
    deciding: int | None = None,
    reason: str = "",
) -> AttackResult:
    """An attack of which only its numbers matter."""
    title, shows = f"{name.replace('_', ' ').capitalize()}", f"What {name.replace('_', ' ')} brings to light."
    return AttackResult(name, title, shows, claim, guarded, verdict, reason, deciding, settings)


def relearning() -> AttackResult:
    """Two choices of rows, three rates, four counts of steps, and the start that all share."""
    settings = [setting({"steps": 0}, 0.06, 0.05, 0.97)]
    for choice, ease in (("whole groups", 1.0), ("one_row", 0.6)):
        for rate in (0.0001, 0.001, 0.01):
            for steps in (1, 5, 20, 80):
                come = ease * (1 - math.exp(-steps * rate * 40)) * (1 if rate < 0.01 else 0.8)
                keys = {"relearned": choice, "learning rate": rate, "steps": steps}
                settings.append(setting(keys, 0.06 + 0.72 * come, 0.05 + 0.12 * come, 0.97))
    worst = max(range(len(settings)), key=lambda index: settings[index].difference)
    return attack("relearning", tuple(settings), claim="comes_back", verdict="does not hold", deciding=worst)


def wordings(*, guarded: bool) -> AttackResult:
    """Told by family, raw or through the gate, and refusals that judge nothing."""
    share = 0.1 if guarded else 1.0
    told = [
        setting(
            {"wording": "any" if family == "any" else f"{family}/1", "family": family},
            share * (0.28 if family == "any" else 0.02 * number),
            0.01,
            0.9,
            measure="told",
        )
        for number, family in enumerate(FAMILIES)
    ]
    if not guarded:
        return attack("wordings", tuple(told), claim="other_words", verdict="does not hold", deciding=len(told) - 1)
    refused = [setting(one.setting, 0.9, measure="refused", compared=False) for one in told]
    return attack(
        "wordings",
        (*told, *refused),
        claim="refused",
        guarded=True,
        verdict="not shown",
        deciding=len(told) - 1,
        reason="100 rows cannot bound a share by 0.01: 299 are needed",
    )


def restoring() -> AttackResult:
    """Rows of words alone: parts of the model put back."""
    parts = {"layer 1": 0.06, "layer 2": 0.08, "all attention": 0.07, "all MLPs": 0.061}
    settings = tuple(setting({"restored": part}, value, 0.06, 0.97) for part, value in parts.items())
    return attack("storage", settings, claim="gone", verdict="holds", deciding=1)


def unbounded(value: float) -> MetricResult:
    """A number that is no share, with an interval of 1 on either side."""
    return MetricResult("score", value, value - 1, value + 1, 100, 0, "lower")


def scores() -> AttackResult:
    """Numbers that are no shares and judge nothing."""
    values = {"energy": -3.5, "entropy": 2.25, "min-k": -8.0}
    settings = tuple(
        SettingResult({"number": name}, "score", "forget", {"artifact": unbounded(value)}, math.nan, math.nan, math.nan)
        for name, value in values.items()
    )
    return attack("membership", settings)


def claim(name: str, title: str, result: AttackResult | None, verdict: Verdict, label: str = "") -> ClaimResult:
    """The claim that this attack decides; without one, not shown."""
    if result is None or result.deciding is None:
        return ClaimResult(name, title, "not shown", "", "", "", f"{title}: not shown. No attack was made on it.")
    one = result.settings[result.deciding]
    numbers = f"{one.values['artifact'].value:.3f}; difference {one.difference:.3f}"
    why = f"{title}: {verdict}. What decides is {result.title.lower()} ({label}): {numbers}."
    return ClaimResult(name, title, verdict, result.name, label, numbers, why)


def made_up_audit() -> Audit:
    """All of it: one claim holds, two do not, two are not shown."""
    comes_back, raw, guarded, gone = relearning(), wordings(guarded=False), wordings(guarded=True), restoring()
    return Audit(
        label="tofu <b>forget10</b>",
        level="quick",
        models={
            "artifact": AuditedModel("runs/artifact", "a" * 64),
            "original": AuditedModel("models/original", "b" * 64),
            "oracle": AuditedModel("models/never-knew", "c" * 64),
        },
        gate="d" * 64,
        control="oracle",
        rows={"forget": AuditedRows(400, 20, "e" * 64), "retain": AuditedRows(400, 400, "f" * 64)},
        margins=MARGINS,
        judging="0123456789ab" + "0" * 52,
        claims=(
            claim("gone", "Gone from the weights", gone, "holds", "layer 2"),
            claim("other_words", "Gone in other words", raw, "does not hold", "any"),
            claim(
                "comes_back",
                "Does not come back",
                comes_back,
                "does not hold",
                "whole groups, learning rate 0.001, steps 80",
            ),
            claim("refused", "Nothing forgotten gets past the gate", guarded, "not shown", "any"),
            claim("nothing_else", "Nothing else is refused", None, "not shown"),
        ),
        attacks=(gone, raw, comes_back, guarded, scores()),
        examples=(
            ToldExample("wordings", "role_play/1, role_play", True, SPITEFUL, "Nobody <i>knows</i>.", "It is <b>nobody</b>."),
            ToldExample("wordings", "any", False, "Where was Basil born?", "In Kuwait City.", "Basil was born in Kuwait City."),
        ),
        left_out={"probes": "artifact: it needs wrong answers (TOFU's <perturbed_answer>)"},
        seed=7,
    )
