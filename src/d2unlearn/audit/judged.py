"""What was read, judged: by an audit, and again from what it kept where the rules of the verdict have changed since."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from d2unlearn.audit.claims import CLAIMS, FORGET, Claim
from d2unlearn.audit.parts import AttackPlan
from d2unlearn.audit.plans.paraphrases import PARAPHRASED
from d2unlearn.audit.records import AttackResult, Audit, read_audit
from d2unlearn.audit.suite import ATTACKS
from d2unlearn.audit.summary import AttackText, Readings, attack_results, not_asked
from d2unlearn.audit.verdict import VERDICT_RULES, ClaimMargins
from d2unlearn.errors import DataError
from d2unlearn.runtime import read_json, write_json
from d2unlearn.schema import ClaimResult
from d2unlearn.serialization import record_from_json, record_to_json

READINGS = "attacks"
"""Folder of the readings row by row, a file an attack, beside the record."""


def judged(
    readings: Sequence[Readings],
    plans: Mapping[str, AttackPlan],
    *,
    left_out: Mapping[str, str],
    rate: float | None,
    margins: ClaimMargins,
    groups: Mapping[str, int],
    seed: int,
) -> tuple[list[AttackResult], list[ClaimResult]]:
    """Every attack's result and every claim's. plans: all that claims rest on; left_out: those not made; rate: as the gate
    promises; groups: how many there are of each set of rows.
    """
    made = {(each.attack, each.claim) for each in readings if each.subject == "artifact" and each.readings}
    return attack_results(
        readings,
        {name: AttackText(plan.title, plan.shows, plan.uses_original) for name, plan in plans.items()},
        rate=rate,
        margins=margins,
        made={claim: all(_is_made(plan, claim, left_out, made) for plan in plans.values()) for claim in CLAIMS},
        groups={name: groups[name] for name in (FORGET, PARAPHRASED) if name in groups},
        seed=seed,
    )


def judged_again(record: Audit, readings: Sequence[Readings], plans: Mapping[str, AttackPlan] = ATTACKS) -> Audit:
    """The record as the present rules judge its readings; nothing is attacked anew."""
    order = list(plans)
    known = [each for each in readings if each.attack in plans]
    attacks, claims = judged(
        sorted(known, key=lambda each: order.index(each.attack)),
        plans,
        left_out=record.left_out,
        rate=_promised(record),
        margins=ClaimMargins(**record.margins),
        groups={name: rows.groups for name, rows in record.rows.items()},
        seed=record.seed,
    )
    unmade = record.unmade or {attack: tuple(reasons) for attack, reasons in not_asked(known).items()}
    return replace(
        record, attacks=tuple(attacks), claims=tuple(claims), promised=_promised(record), rules=VERDICT_RULES, unmade=unmade
    )


def judge_again(path: Path, plans: Mapping[str, AttackPlan] = ATTACKS) -> Audit:
    """The record at `path`, judged again where the rules are others now, and written back.

    Raises `DataError` where the readings beside it are gone.
    """
    record = read_audit(path)
    if record.rules == VERDICT_RULES:
        return record
    again = judged_again(record, read_readings(path.with_name(READINGS)), plans)
    write_json(path, record_to_json(again, "audit"))
    return again


def read_readings(folder: Path) -> list[Readings]:
    """What an audit read, of all attacks. Raises `DataError` where there is nothing."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError(f"{folder} holds no readings: the audit can be judged again only by `d2unlearn audit` anew")
    advice = "run `d2unlearn audit` again"
    return [
        record_from_json(Readings, each, str(file), "readings of an audit", advice)
        for file in files
        for each in read_json(file)["readings"]
    ]


def _promised(record: Audit) -> float | None:
    """The rate of false refusals that the gate promises; older records say it by what they were held against."""
    if record.promised is not None:
        return record.promised
    for result in record.attacks:
        for one in result.settings if result.claim == "nothing_else" else ():
            if one.difference == one.difference:
                return round(one.values["artifact"].value - one.difference, 9)
    return None


def _is_made(plan: AttackPlan, claim: Claim, left_out: Mapping[str, str], made: Collection[tuple[str, Claim | None]]) -> bool:
    """Whether an attack was made on the artifact as far as it may count for the claim. made: attack and claim of readings."""
    return claim not in plan.claims or (plan.name not in left_out and (plan.name, claim) in made)
