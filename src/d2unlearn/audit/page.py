"""The page of an audit: the claims first, then every attack in pictures and numbers, drawn from `audit.json` alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from d2unlearn.audit.claims import CLAIMS, NEVER_SEEN
from d2unlearn.audit.page_figures import curve_figure
from d2unlearn.audit.page_pictures import MARKED, ROW_WORDS, TOLD_APART, Picture, measure_title, pictures
from d2unlearn.audit.records import AttackResult, Audit, SettingResult, ToldExample, read_audit
from d2unlearn.audit.summary import NO_CONTROL, in_words
from d2unlearn.audit.verdict import ClaimMargins
from d2unlearn.report.figures import Panel
from d2unlearn.report.html import VERDICT_STATES, RunSection, run_sections, template
from d2unlearn.report.notation import NOT_SCORED, fixed, folder_name, readable
from d2unlearn.runtime import atomic_write, said_if_long
from d2unlearn.schema import AUDIT_PAGE, ClaimResult, Verdict

COUNTED: tuple[tuple[Verdict, str, str], ...] = (
    ("holds", "holds", "hold"),
    ("does not hold", "does not", "do not"),
    ("not shown", "is not shown", "are not shown"),
)
CONTROLS = {
    "oracle": "a model that never knew",
    NEVER_SEEN: "facts of the same kind that the artifact was never shown",
    "none": "nothing: no difference can be told from what an attack teaches, so no claim can be shown",
}


@dataclass(frozen=True)
class ClaimCard:
    """One claim as the head shows it. value: what the artifact shows beyond what it may be held against, where it decides.

    `attack`: title and anchor of the attack that decides, empty where none does.
    """

    result: ClaimResult
    state: str
    measured: str
    value: str
    detail: str
    attack: tuple[str, str]


@dataclass(frozen=True)
class VerdictLine:
    """What one attack says of one claim."""

    state: str
    verdict: str
    claim: str
    way: str
    reason: str


@dataclass(frozen=True)
class DrawnPicture:
    """A picture with its curves drawn."""

    picture: Picture
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class NumberRow:
    """One setting in the table of numbers, as written. numbers: artifact, control, original, difference, with intervals."""

    setting: str
    measure: str
    way: str
    numbers: tuple[tuple[str, str], ...]
    n: str
    decides: bool


@dataclass(frozen=True)
class AttackSection:
    """All that the page says of one attack. `folded`: pictures of what is measured beside that which judges."""

    anchor: str
    title: str
    shows: str
    verdicts: tuple[VerdictLine, ...]
    open: tuple[DrawnPicture, ...]
    folded: tuple[DrawnPicture, ...]
    numbers: tuple[NumberRow, ...]
    unmade: tuple[str, ...] = ()


def write_audit_page(path: Path) -> Path:
    """Draw the audit at `path` into a page beside it; the page's path."""
    page = path.with_name(AUDIT_PAGE)
    with said_if_long("drawing the page"):
        atomic_write(page, audit_page(read_audit(path)))
    return page


def audit_page(audit: Audit) -> str:
    """The page as one HTML document that loads nothing."""
    return template("audit", "page.html.j2").render(
        audit=audit,
        headline=claims_headline(audit.claims),
        sentence=described(audit),
        cautions=cautions(audit),
        cards=[claim_card(claim, audit) for claim in audit.claims],
        attacks=attack_sections(audit),
        series=MARKED,
        left_out=[(readable(name), reason) for name, reason in audit.left_out.items()],
        examples=[(example, title_of(example, audit)) for example in audit.examples],
        no_examples=no_examples(audit),
        sections=how_done(audit),
    )


# -- the head ------------------------------------------------------------------------------------------------------------


def claims_headline(claims: Sequence[ClaimResult]) -> str:
    """How many claims hold, in one sentence."""
    if not claims:
        return "No claim was judged."
    counts = [(sum(claim.verdict == verdict for claim in claims), one, several) for verdict, one, several in COUNTED]
    if counts[0][0] == len(claims):
        return "Every claim holds."
    said = [f"{count} {one if count == 1 else several}" for count, one, several in counts if count]
    return f"Of {len(claims)} claims, {', '.join(said if counts[0][0] else ['none holds', *said])}."


def described(audit: Audit) -> str:
    """What was audited, on what, and how thoroughly."""
    rows = ", ".join(
        f"{each.n:,} {ROW_WORDS.get(name, readable(name))} in {each.groups:,} group{'s' * (each.groups != 1)}"
        for name, each in audit.rows.items()
    )
    oracle = audit.models.get("oracle")
    against = CONTROLS[audit.control] + (f" ({folder_name(oracle.source)})" if oracle else "")
    return f"Attacked at level “{audit.level}”, held against {against}. Given: {rows or 'no rows'}; seed {audit.seed}."


def cautions(audit: Audit) -> list[tuple[str, str]]:
    """(level, text) of what has to be known before the verdicts are believed."""
    found = [("warn", f"{text[:1].upper()}{text[1:]}.") for text in audit.warnings]
    if audit.control == "none":
        found.insert(0, ("warn", f"{NO_CONTROL[:1].upper()}{NO_CONTROL[1:]}."))
    if audit.guard:
        text = f"The weights are untouched: {audit.guard} alone withholds what should be gone, and was fitted on its questions."
        found.insert(0, ("note", text))
    if audit.control == NEVER_SEEN:
        text = "No model that never knew was given: facts of the same kind that this model never saw stand in for it."
        found.insert(0, ("note", text))
    if audit.left_out:
        names = ", ".join(readable(name) for name in audit.left_out)
        found.append(("warn", f"Not made: {names}. No claim that rests on them can hold."))
    return found


def claim_card(claim: ClaimResult, audit: Audit) -> ClaimCard:
    """A claim with the number that decides it, looked up in the attack that it names."""
    text = next((text.measured for name, text in CLAIMS.items() if name == claim.name), "")
    state, found = VERDICT_STATES[claim.verdict], _deciding(claim, audit)
    if found is None:
        return ClaimCard(claim, state, text, NOT_SCORED, "no number decides", ("", ""))
    result, one = found
    above = {"oracle": "above the model that never knew", NEVER_SEEN: "above facts never seen"}
    control = next((above[name] for name in above if name in one.values), "above what is promised")
    margin = ClaimMargins(**audit.margins).of(one.measure)
    allowed = "" if margin is None else f"; {margin:g} is allowed"
    value = f"{'+' * (one.difference > 0)}{fixed(one.difference)}"
    return ClaimCard(claim, state, text, value, f"{control}{allowed}", (result.title, anchor_of(result.name)))


def _deciding(claim: ClaimResult, audit: Audit) -> tuple[AttackResult, SettingResult] | None:
    """The attack and the setting that a claim names; of an attack made raw and through the gate, that which it means."""
    decided = [
        (result, result.settings[result.deciding])
        for result in audit.attacks
        if (result.name, result.claim) == (claim.attack, claim.name) and result.deciding is not None
    ]
    named = [(result, one) for result, one in decided if in_words(one.setting) == claim.setting]
    return next(iter(named or decided), None)


# -- the attacks ---------------------------------------------------------------------------------------------------------


def attack_sections(audit: Audit) -> list[AttackSection]:
    """A section for every attack that was made."""
    margins = ClaimMargins(**audit.margins)
    by_name: dict[str, list[AttackResult]] = {}
    for result in audit.attacks:
        by_name.setdefault(result.name, []).append(result)
    return [_section(name, results, margins, audit.unmade.get(name, ())) for name, results in by_name.items()]


def anchor_of(name: str) -> str:
    """The id of an attack's section."""
    return "attack-" + "".join(letter if letter.isalnum() else "-" for letter in name)


def title_of(example: ToldExample, audit: Audit) -> str:
    """How the page calls the attack of an example."""
    return next((result.title for result in audit.attacks if result.name == example.attack), readable(example.attack))


def _section(name: str, results: Sequence[AttackResult], margins: ClaimMargins, unmade: Sequence[str]) -> AttackSection:
    """What judges is open; of an attack that judges nothing how well rows are told apart, where that is known, else all."""
    drawn = [_drawn(picture, f"{anchor_of(name)}-{number}") for number, picture in enumerate(pictures(results, margins))]
    judged = {each.picture.measure for each in drawn if each.picture.judged}
    told_apart = {each.picture.measure for each in drawn if each.picture.measure == TOLD_APART}
    measures = judged or told_apart or {each.picture.measure for each in drawn}
    return AttackSection(
        anchor_of(name),
        results[0].title,
        results[0].shows,
        tuple(_verdict_line(result) for result in results if result.claim),
        tuple(each for each in drawn if each.picture.measure in measures),
        tuple(each for each in drawn if each.picture.measure not in measures),
        tuple(_number_row(result, index) for result in results for index in range(len(result.settings))),
        tuple(f"{text[:1].upper()}{text[1:]}." for text in unmade),
    )


def _drawn(picture: Picture, key: str) -> DrawnPicture:
    panels = enumerate(picture.panels)
    return DrawnPicture(picture, tuple(curve_figure(panel, picture.scale, f"{key}-{number}") for number, panel in panels))


def _verdict_line(result: AttackResult) -> VerdictLine:
    claim = next((text.title for name, text in CLAIMS.items() if name == result.claim), result.claim)
    reason = f"{result.reason[:1].upper()}{result.reason[1:]}." if result.reason and result.verdict == "not shown" else ""
    return VerdictLine(VERDICT_STATES[result.verdict], result.verdict, claim, _way(result), reason)


def _way(result: AttackResult) -> str:
    return "through the gate" if result.guarded else "raw"


def _number_row(result: AttackResult, index: int) -> NumberRow:
    one = result.settings[index]
    control = next((one.values[name] for name in ("oracle", NEVER_SEEN) if name in one.values), None)
    shown = [one.values["artifact"], control, one.values.get("original")]
    numbers = [("", "") if each is None else (fixed(each.value), _interval(each.low, each.high)) for each in shown]
    difference = (fixed(one.difference), _interval(one.low, one.high)) if math.isfinite(one.difference) else ("", "")
    auc = next(iter(one.told_apart.values()), None)
    if auc is not None:
        difference = (f"AUC {fixed(auc.value)}", _interval(auc.low, auc.high))
    return NumberRow(
        readable(in_words(one.setting)) or "as it is",
        measure_title(one.measure, one.rows),
        _way(result),
        (*numbers, difference),
        f"{one.values['artifact'].n:,}",
        index == result.deciding,
    )


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"{fixed(low)} to {fixed(high)}"


# -- the end -------------------------------------------------------------------------------------------------------------


def no_examples(audit: Audit) -> str:
    """Why there are no examples; empty where there are some."""
    if audit.examples:
        return ""
    return "Texts were left out of this audit (--redact)." if audit.redacted else "No forgotten row was told in any attack."


def how_done(audit: Audit) -> tuple[RunSection, ...]:
    """Models, rows, margins and settings, with the hashes that tell one audit from another."""
    sections = run_sections(
        {
            "models": {name: f"{model.source} (weights {model.weights[:12]})" for name, model in audit.models.items()},
            "rows": {
                name: f"{each.n:,} of {each.groups:,} groups (hash {each.content[:12]})" for name, each in audit.rows.items()
            },
            "margins": {readable(name): value for name, value in audit.margins.items()},
            "settings": {
                "level": audit.level,
                "held against": audit.control,
                "seed": audit.seed,
                "gate": audit.gate[:12] or None,
                "guard": audit.guard or None,
                "judging wordings": audit.judging[:12],
            },
        }
    )
    return tuple(replace(section, title=readable(section.title)) for section in sections)
