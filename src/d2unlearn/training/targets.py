"""What a run has to reach, and where it stands between its targets. Pure functions of numbers.

Two things are asked of it: what is to be forgotten has become improbable, and what should stay has stayed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_LEAST = 1e-12
"""Probabilities below count as this one, so that a logarithm exists."""
NOTHING_KEPT = 10.0
"""So many times the loss that is allowed weighs as much as having forgotten nothing."""


class Targets(NamedTuple):
    """`forget_below`: bound on the mean answer probability of forgotten rows, as they are and in other words.

    `keep_at_least`: bound on the share of the tokens that the original had right, of held-out retained and of near rows apart.
    """

    forget_below: float
    keep_at_least: float


@dataclass(frozen=True)
class Standing:
    """Where a run stands after a step. forget: mean answer probability, of the rows or of rows and renderings, if that is more.

    retain, near: share of the original's right tokens that are still right, at most 1; NaN where it had none right. `weights`:
    those of the method's terms at that time.
    """

    step: int
    epoch: float
    forget: float
    retain: float
    near: float
    weights: Mapping[str, float]

    @property
    def kept(self) -> float:
        """The lesser of both shares; 1 where there was nothing to lose."""
        return min((share for share in (self.retain, self.near) if not math.isnan(share)), default=1.0)


def standing_of(metrics: Mapping[str, float], before: Mapping[str, float], *, step: int, epoch: float) -> Standing:
    """From the numbers of a `Snapshot` by name, now and before training. NaN for `forget` when the model gives no numbers."""
    plain, reworded = metrics["forget_probability"], metrics.get("reworded_probability", math.nan)
    shares = (_share(metrics[name], before[name]) for name in ("retain_right", "near_right"))
    forget = forgotten(plain, reworded)
    weights = {name: metrics[name] for name in ("gamma", "alpha") if name in metrics}
    return Standing(step, epoch, forget, next(shares), next(shares), weights)


def forgotten(plain: float, reworded: float) -> float:
    """What is held against `forget_below`: the mean over the rows, or over rows and renderings where that is more.

    Both kinds weigh alike in the second. reworded: NaN where there are none.
    """
    return plain if math.isnan(reworded) else max(plain, (plain + reworded) / 2)


def is_met(standing: Standing, targets: Targets) -> bool:
    """Whether both targets hold."""
    return standing.forget <= targets.forget_below and standing.kept >= targets.keep_at_least


def forget_left(forget: float, start: float, targets: Targets) -> float:
    """Share of the way in logarithms from the original's probability to the bound that is left: 0 at the bound, 1 at first."""
    if not forget > targets.forget_below:
        return 0.0
    way = math.log(max(start, _LEAST) / targets.forget_below)
    return min(math.log(forget / targets.forget_below) / way, 1.0) if way > 0 else 1.0


def keep_lost(kept: float, targets: Targets) -> float:
    """How far below its bound what is kept lies, in units of the loss that is allowed; 0 where the bound holds."""
    return max(targets.keep_at_least - kept, 0.0) / (1 - targets.keep_at_least)


def merit(standing: Standing, start: float, targets: Targets, selection: float) -> float:
    """By which the best checkpoint is chosen: `selection`, 0 to 1, where both targets hold, else minus what both lack.

    start: the original's probability. Of two that lack something the one that lacks less is better, and one that lacks nothing
    is better than both. NaN for a model that gives no numbers.
    """
    if math.isnan(standing.forget):
        return math.nan
    if is_met(standing, targets):
        return selection
    return -forget_left(standing.forget, start, targets) - keep_lost(standing.kept, targets) / NOTHING_KEPT


def nearest_two(path: Sequence[Standing], targets: Targets) -> list[Standing]:
    """The points of a path nearest to its targets, one from each side, in the path's order.

    Of those that keep enough the one that forgot most, of those that forgot enough the one that kept most. Where a side has
    none, the one that comes nearest to it: that kept most, that forgot most.
    """
    numbers = [standing for standing in path if not math.isnan(standing.forget)]
    if not numbers:
        return []
    keeping = [s for s in numbers if s.kept >= targets.keep_at_least]
    gone = [s for s in numbers if s.forget <= targets.forget_below]
    kept = min(keeping, key=lambda s: s.forget) if keeping else max(numbers, key=lambda s: (s.kept, -s.forget))
    forgot = max(gone, key=lambda s: s.kept) if gone else min(numbers, key=lambda s: (s.forget, -s.kept))
    return sorted({s.step: s for s in (kept, forgot)}.values(), key=lambda s: s.step)


def verdict(path: Sequence[Standing], held: Standing | None, targets: Targets) -> str:
    """One sentence on the artifact: both targets hold, or which is missed, with the two nearest points of the path.

    held: where the artifact's weights stand; None: nothing on the path gave numbers.
    """
    asked = f"forget at most {targets.forget_below:.3g}, keep at least {targets.keep_at_least:.3g}"
    if held is not None and is_met(held, targets):
        return f"both targets hold ({asked}): {said(held)}"
    missed = {
        "forget": held is None or not held.forget <= targets.forget_below,
        "keep": held is None or held.kept < targets.keep_at_least,
    }
    names = " and ".join(name for name, is_missed in missed.items() if is_missed)
    near = "; ".join(said(standing) for standing in nearest_two(path, targets)) or "none"
    return f"target missed: {names} ({asked}); the nearest points: {near}"


def said(standing: Standing) -> str:
    """A point of the path as a person reads it."""
    shares = {"retained": standing.retain, "near": standing.near}
    kept = ", ".join(f"{name} {share:.3f}" for name, share in shares.items() if not math.isnan(share))
    return f"step {standing.step} forget {standing.forget:.3g}, kept {kept or '- (the original knew nothing)'}"


def _share(now: float, before: float) -> float:
    return min(now / before, 1.0) if before > 0 and not math.isnan(now) else math.nan
