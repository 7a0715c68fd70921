"""A run in one line: what the numbers say, what they rest on, and the concerns about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from d2unlearn.metrics.summary import KL_METRIC
from d2unlearn.report.concerns import CAUGHT_FLOOR, KNOWLEDGE, BeforeAfter, Concern, concerns, metric_of, pooled, retention
from d2unlearn.report.notation import fixed, label_in_text, percent, readable, stated
from d2unlearn.schema import Kind

State = Literal["good", "warn", "bad", "unknown"]


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
    cases: tuple[tuple[bool, str, State], ...] = (
        (not forgot, "It cannot be said whether it worked: no answer of the forget sets was scored.", "unknown"),
        ({"extractable", "retain_lost"} <= bad, "It failed: forgotten answers still come out, others were lost.", "bad"),
        ("extractable" in bad, "It did not work: forgotten answers still come out of the raw weights.", "bad"),
        ("retain_lost" in bad, "The knowledge is gone, but so is part of what should have stayed.", "bad"),
        ("entropy_collapsed" in bad, "The knowledge is gone, but the model no longer writes properly.", "bad"),
        ("false_refusals" in bad, "The knowledge is gone, but too many legitimate questions are refused.", "bad"),
        ("missed" in bad, "The knowledge is gone, but requests for it are seldom refused.", "bad"),
        (math.isnan(kept), "The knowledge is gone; whether the rest was kept is not known.", "unknown"),
        (some == {"no_gate"}, "The knowledge is gone and the rest is kept; no gate refuses requests for it yet.", "warn"),
        (bool(some), "It worked, with reservations.", "warn"),
    )
    done = "It worked: the knowledge is gone, requests for it are refused, the rest is kept."
    return next(((text, state) for holds, text, state in cases if holds), (done, "good"))


def _sentence(run: BeforeAfter) -> str:
    """The numbers that the headline rests on; parts that were not scored are left out."""
    name = run.knowledge_metric
    parts = [f"forget: {label_in_text(name)} {' → '.join(_change(run, name, 2))}"] if name else []
    if not math.isnan(kept := retention(run.pairs("retain"))[1]):
        parts.append(f"retained knowledge {fixed(kept, 2)} of the original")
    rates = [(run.refusal_rate("forget"), "forget questions"), (run.refusal_rate("retain"), "retained")]
    refused = [f"{percent(rate)} of {which}" for rate, which in rates if not math.isnan(rate)]
    text = "; ".join([*parts, *([f"refusals: {', '.join(refused)}"] if refused else [])])
    return f"{text[:1].upper()}{text[1:]}." if text else "No number was scored."


def _change(run: BeforeAfter, name: str, decimals: int) -> tuple[str, str]:
    """A metric pooled over the forget sets, before and after."""
    pairs = run.pairs("forget")
    return fixed(pooled([b for b, _ in pairs], name), decimals), fixed(pooled([a for _, a in pairs], name), decimals)


def _forget_tile(run: BeforeAfter, raised: Sequence[Concern]) -> Tile:
    name = run.knowledge_metric
    if not name:
        return Tile("Forgotten", fixed(math.nan), "not scored", "unknown")
    others = [other for other in KNOWLEDGE if other != name and any(metric_of(s, other) for s in run.later("forget"))]
    numbers = [f"{label_in_text(other)} {' → '.join(_change(run, other, 3))}" for other in others]
    detail = "; ".join([f"{label_in_text(name)} of the raw weights{_together(run, 'forget')}", *numbers])
    return Tile("Forgotten", " → ".join(_change(run, name, 2)), detail, _judged(raised, "extractable"))


def _retain_tile(run: BeforeAfter, raised: Sequence[Concern]) -> Tile:
    pairs = run.pairs("retain")
    name, kept = retention(pairs)
    if math.isnan(kept):
        return Tile("Kept", fixed(kept), "not scored", "unknown")
    detail = f"of the original’s {label_in_text(name)}{_together(run, 'retain')}"
    if not math.isnan(kl := pooled([after for _, after in pairs], KL_METRIC)):
        detail += f"; KL to the original {fixed(kl, 3)} nats a token"
    shares = [(retention([pair]), pair[1].name) for pair in pairs]
    (metric, worst), where = min((share for share in shares if not math.isnan(share[0][1])), key=lambda share: share[0][1])
    if len(pairs) > 1:
        of = "" if metric == name else f" of its {label_in_text(metric)}"
        detail += f"; least on {readable(where)}: {percent(worst)}{of}"
    return Tile("Kept", percent(kept), detail, _judged(raised, "retain_lost", "retain_moved"))


def _refusal_tiles(run: BeforeAfter, raised: Sequence[Concern]) -> tuple[Tile, Tile]:
    hit, wrong = run.refusal_rate("forget"), run.refusal_rate("retain")
    caught = Tile(
        "Rightly refused",
        percent(hit),
        f"of forget questions{_together(run, 'forget')}; floor {CAUGHT_FLOOR:.0%}",
        _judged(raised, "missed", "leaks"),
    )
    allowed = "" if math.isnan(run.ceiling) else f"; ceiling {stated(run.ceiling)}"
    of = f"of retained questions{_together(run, 'retain')}"
    mistaken = Tile("Wrongly refused", percent(wrong), f"{of}{allowed}", _judged(raised, "false_refusals"))
    unknown = [Tile(t.title, t.value, "no gate was measured", "unknown") for t in (caught, mistaken)]
    return unknown[0] if math.isnan(hit) else caught, unknown[1] if math.isnan(wrong) else mistaken


def _together(run: BeforeAfter, kind: Kind) -> str:
    """Says that a tile's number is of several sets, where there are several."""
    count = len(run.later(kind))
    return f", {count} sets together" if count > 1 else ""


def _judged(raised: Sequence[Concern], *rules: str) -> State:
    """The worst level among the concerns of these rules; good when there is none."""
    levels = {concern.level for concern in raised if concern.rule in rules}
    return "bad" if "bad" in levels else "warn" if "warn" in levels else "good"
