"""A run in one line: what the numbers say, what they rest on, and the concerns about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from d2unlearn.metrics.summary import KL_METRIC
from d2unlearn.report.concerns import (
    CAUGHT_FLOOR,
    KNOWLEDGE,
    BeforeAfter,
    Concern,
    concerns,
    extractable,
    few_rows,
    metric_of,
    retention,
    value_of,
)
from d2unlearn.report.notation import fixed, label_in_text, percent, readable, stated
from d2unlearn.schema import EvaluatedSet, Evaluation, Kind

State = Literal["good", "warn", "bad", "unknown"]
_REFUSED = "guarded_refusal_rate"
"""The share of questions that the gate refuses."""


@dataclass(frozen=True)
class Tile:
    """One of the headline's numbers. `state` says how it is judged."""

    title: str
    value: str
    detail: str
    state: State


@dataclass(frozen=True)
class Summary:
    """`headline` in plain words, `sentence` with the numbers it rests on, and the concerns, worst first."""

    headline: str
    state: State
    sentence: str
    tiles: tuple[Tile, ...]
    concerns: tuple[Concern, ...]

    @property
    def boxes(self) -> tuple[tuple[Concern, ...], ...]:
        """The concerns of one rule and level together, in their order."""
        kinds = dict.fromkeys((concern.level, concern.rule) for concern in self.concerns)
        return tuple(tuple(c for c in self.concerns if (c.level, c.rule) == kind) for kind in kinds)


def summarize(run: BeforeAfter) -> Summary:
    """The headline, its numbers and the concerns of a run."""
    raised = concerns(run)
    tiles = (_forget_tile(run, raised), _retain_tile(run, raised), *_refusal_tiles(run, raised))
    headline, state = _headline(run, raised)
    return Summary(headline, state, _sentence(run), tiles, raised)


def _headline(run: BeforeAfter, raised: Sequence[Concern]) -> tuple[str, State]:
    """The first line that fits, from the worst case to the best."""
    bad = {concern.rule for concern in raised if concern.level == "bad"}
    some = {concern.rule for concern in raised if concern.level != "note"}
    forgot, kept = run.knowledge_metric, retention(run.pairs("retain"))[1]
    gone = "None of the few forget rows is known any more" if "few_rows" in some else "The knowledge is gone"
    cases: tuple[tuple[bool, str, State], ...] = (
        (not forgot, "It cannot be said whether it worked: no answer of the forget sets was scored.", "unknown"),
        ({"extractable", "retain_lost"} <= bad, "It failed: forgotten answers still come out, others were lost.", "bad"),
        ("extractable" in bad, "It did not work: forgotten answers still come out of the raw weights.", "bad"),
        ("retain_lost" in bad, f"{gone}, but so is part of what should have stayed.", "bad"),
        ("entropy_collapsed" in bad, f"{gone}, but the model no longer writes properly.", "bad"),
        ("false_refusals" in bad, f"{gone}, but too many legitimate questions are refused.", "bad"),
        ("missed" in bad, f"{gone}, but requests for it are seldom refused.", "bad"),
        ("few_rows" in some, f"{gone}: too few to say that the knowledge is gone.", "warn"),
        (math.isnan(kept), f"{gone}; whether the rest was kept is not known.", "unknown"),
        (some == {"no_gate"}, f"{gone} and the rest is kept; no gate refuses requests for it yet.", "warn"),
        (bool(some), "It worked, with reservations.", "warn"),
    )
    done = f"It worked: {gone[:1].lower()}{gone[1:]}, requests for it are refused, the rest is kept."
    return next(((text, state) for holds, text, state in cases if holds), (done, "good"))


def _sentence(run: BeforeAfter) -> str:
    """The numbers that the headline rests on, with intervals and rows; parts that were not scored are left out.

    Of several sets each number is that of the worst, so that it stands in that set's table too.
    """
    name, known = run.knowledge_metric, run.best_known
    parts = [f"forget: {label_in_text(name)} {_change(run, known, name, 2)} {_measured(known, name, 2)}"] if known else []
    pair, _, kept = _worst_kept(run)
    if pair is not None:
        parts.append(f"retained knowledge {fixed(kept, 2)} of the original")
    kinds: tuple[tuple[Kind, str], ...] = (("forget", "forget questions"), ("retain", "retained"))
    found = [(run.worst_refusals(kind), which) for kind, which in kinds]
    refused = [f"{percent(value_of(s, _REFUSED))} of {which} {_measured(s, _REFUSED)}" for s, which in found if s is not None]
    text = "; ".join([*parts, *([f"refusals: {', '.join(refused)}"] if refused else [])])
    return f"{text[:1].upper()}{text[1:]}." if text else "No number was scored."


def verdict_of(evaluation: Evaluation) -> str:
    """One evaluation in a line, with the rows and intervals that it rests on; empty where nothing of a set was scored."""
    run = BeforeAfter(replace(evaluation, sets=()), evaluation, None)
    parts = []
    if known := run.best_known:
        name = run.knowledge_metric
        words = (
            "still known" if any(extractable(run)) else "not known" if not any(few_rows(run)) else "not known, too few to say"
        )
        parts.append(f"forget rows {words}: {label_in_text(name)} {fixed(value_of(known, name))} {_measured(known, name)}")
    for evaluated in run.later("retain"):
        if name := next((name for name in KNOWLEDGE if metric_of(evaluated, name)), ""):
            parts.append(f"{readable(evaluated.name)}: {fixed(value_of(evaluated, name))} {_measured(evaluated, name)}")
    kinds: tuple[tuple[Kind, str], ...] = (("forget", "forget"), ("retain", "retained"))
    found = [(run.worst_refusals(kind), which) for kind, which in kinds]
    parts += [
        f"refuses {percent(value_of(s, _REFUSED))} of {which} {_measured(s, _REFUSED)}" for s, which in found if s is not None
    ]
    return "; ".join(parts)


def _worst_kept(run: BeforeAfter) -> tuple[tuple[EvaluatedSet | None, EvaluatedSet] | None, str, float]:
    """(before and after, metric, share left) of the retained set that kept least; (None, "", NaN) where none is comparable."""
    shares = [(pair, *retention([pair])) for pair in run.pairs("retain")]
    return min((s for s in shares if not math.isnan(s[2])), key=lambda share: share[2], default=(None, "", math.nan))


def _change(run: BeforeAfter, known: EvaluatedSet, name: str, decimals: int) -> str:
    """A forget set's metric, before and after."""
    before = next(b for b, a in run.pairs("forget") if a is known)
    return f"{fixed(value_of(before, name), decimals)} → {fixed(value_of(known, name), decimals)}"


def _measured(evaluated: EvaluatedSet, name: str, decimals: int = 3) -> str:
    """A metric's interval and rows."""
    metric = metric_of(evaluated, name)
    if metric is None:
        return ""
    shown = percent if name == _REFUSED else lambda value: fixed(value, decimals)
    return f"[{shown(metric.low)}, {shown(metric.high)}], n = {metric.n}"


def _forget_tile(run: BeforeAfter, raised: Sequence[Concern]) -> Tile:
    name, known = run.knowledge_metric, run.best_known
    if known is None:
        return Tile("Forgotten", fixed(math.nan), "not scored", "unknown")
    others = [other for other in KNOWLEDGE if other != name and metric_of(known, other) is not None]
    numbers = [f"{label_in_text(other)} {_change(run, known, other, 3)}" for other in others]
    detail = "; ".join([f"{label_in_text(name)} of the raw weights {_measured(known, name, 2)}{_of(run, known)}", *numbers])
    return Tile("Forgotten", _change(run, known, name, 2), detail, _judged(raised, "extractable", "few_rows"))


def _retain_tile(run: BeforeAfter, raised: Sequence[Concern]) -> Tile:
    pair, name, kept = _worst_kept(run)
    if pair is None:
        return Tile("Kept", fixed(kept), "not scored", "unknown")
    before, after = pair
    change = f"{fixed(value_of(before, name), 3)} → {fixed(value_of(after, name), 3)} {_measured(after, name)}"
    detail = f"of the original’s {label_in_text(name)}: {change}{_of(run, after)}"
    if not math.isnan(kl := value_of(after, KL_METRIC)):
        detail += f"; KL to the original {fixed(kl, 3)} nats a token"
    return Tile("Kept", percent(kept), detail, _judged(raised, "retain_lost", "retain_moved"))


def _refusal_tiles(run: BeforeAfter, raised: Sequence[Concern]) -> tuple[Tile, Tile]:
    unknown = ("–", "no gate was measured", "unknown")
    hit, wrong = run.worst_refusals("forget"), run.worst_refusals("retain")
    caught, mistaken = Tile("Rightly refused", *unknown), Tile("Wrongly refused", *unknown)  # type: ignore[arg-type]
    if hit is not None:
        detail = f"of forget questions {_measured(hit, _REFUSED)}{_of(run, hit)}; floor {CAUGHT_FLOOR:.0%}"
        caught = Tile(caught.title, percent(value_of(hit, _REFUSED)), detail, _judged(raised, "missed", "leaks"))
    if wrong is not None:
        allowed = "" if math.isnan(run.ceiling) else f"; ceiling {stated(run.ceiling)}"
        detail = f"of retained questions {_measured(wrong, _REFUSED)}{_of(run, wrong)}{allowed}"
        mistaken = Tile(mistaken.title, percent(value_of(wrong, _REFUSED)), detail, _judged(raised, "false_refusals"))
    return caught, mistaken


def _of(run: BeforeAfter, evaluated: EvaluatedSet) -> str:
    """Says which set a number is of, where there are several of its kind: the worst of them."""
    count = len(run.later(evaluated.kind))
    return f", {readable(evaluated.name)}, the worst of {count} sets" if count > 1 else ""


def _judged(raised: Sequence[Concern], *rules: str) -> State:
    """The worst level among the concerns of these rules; good when there is none."""
    levels = {concern.level for concern in raised if concern.rule in rules}
    return "bad" if "bad" in levels else "warn" if "warn" in levels else "good"
