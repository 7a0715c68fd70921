"""Which energy of a request: one score per request out of the energies of its answer, position by position. numpy only.

A score looks at an answer while it is generated. Each look is a number; the running score is the largest look so far, and
a request is refused as soon as that exceeds the threshold. So a request is refused exactly when its *final* running score, one
number per request, exceeds the threshold: that number is what is calibrated, however many looks there were.

Positions count from 0, the last prompt position. A look that needs more positions than an answer has is made at the
answer's end with those there are, so every request has a score. Energies that are not finite numbers (a broken model) score
+inf: they are refused.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2unlearn.errors import GateError
from d2unlearn.stats import Floats

Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]

SMALLEST_SCALE = 1e-3
"""nats; keeps a statistic that hardly varies from blowing up rounding errors."""


class RunningStatistic(ABC):
    """The state of one score over B answers that advance together, one position at a time."""

    @abstractmethod
    def update(self, energies: Floats) -> Floats | None:
        """Take the next position's energies [B]; return this position's look [B], or None where there is none."""

    @abstractmethod
    def end(self) -> Floats | None:
        """The look at answers that end at the position taken last, or None where there is none."""

    @abstractmethod
    def reorder(self, rows: Indices) -> None:
        """Go on with these answers in these places, [B]: one may be left out, or go on as several (beams)."""


class Score(ABC):
    """A statistic of a request. Subclasses are frozen dataclasses whose fields are plain numbers."""

    @property
    @abstractmethod
    def lookahead(self) -> int:
        """Tokens of an answer that a stream keeps back until the early looks have passed."""

    @property
    def positions(self) -> int | None:
        """How many positions of an answer it looks at, from the first on; None: all of them."""
        return None

    @abstractmethod
    def start(self, n_rows: int) -> RunningStatistic:
        """The state before position 0 of `n_rows` answers."""

    def fit(self, retained: Sequence[Sequence[float]]) -> Score:
        """This score with whatever it standardises by estimated from retained answers' energies."""
        return self


@dataclass(frozen=True)
class FirstTokens(Score):
    """Mean energy of the first `count` positions: one look, after `count` tokens or at the answer's end.

    `count` 1 is the energy of the prompt alone.
    """

    count: int

    @property
    def lookahead(self) -> int:
        return self.count

    @property
    def positions(self) -> int:
        return self.count

    def start(self, n_rows: int) -> RunningStatistic:
        return _RunningMean(np.zeros(self.count), np.ones(self.count), self.count - 1, n_rows)


@dataclass(frozen=True)
class MaxOverLooks(Score):
    """Largest standardised mean of the positions so far, over looks at positions `first` to `last`.

    look(t) = (mean(E_0..E_t) - centre_t) / scale_t,  with centre and scale (robust: median and 1.4826 MAD) of that mean over
    retained answers. An answer that ends before `first` is looked at once, at its end.
    """

    first: int
    last: int
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def lookahead(self) -> int:
        return self.last + 1

    @property
    def positions(self) -> int:
        return self.last + 1

    def start(self, n_rows: int) -> RunningStatistic:
        count = self.last + 1
        centre = np.array(self.centre or [0.0] * count)
        return _RunningMean(centre, np.array(self.scale or [1.0] * count), self.first, n_rows)

    def fit(self, retained: Sequence[Sequence[float]]) -> Score:
        """An answer shorter than t + 1 counts at look t with the mean of all it has."""
        means = [np.cumsum(energies) / np.arange(1, len(energies) + 1) for energies in retained]
        pairs = [robust(np.array([m[min(t, len(m) - 1)] for m in means])) for t in range(self.last + 1)]
        return MaxOverLooks(self.first, self.last, tuple(c for c, _ in pairs), tuple(s for _, s in pairs))


@dataclass(frozen=True)
class TrailingWindow(Score):
    """Largest mean energy of `width` consecutive positions, over the whole answer: what starts half-way is seen too."""

    width: int

    @property
    def lookahead(self) -> int:
        return self.width

    def start(self, n_rows: int) -> RunningStatistic:
        return _RunningWindow(self.width)


@dataclass(frozen=True)
class Highest(Score):
    """Mean of the `count` highest energies of the answer, wherever they lie; looked at from position `count` - 1 on.

    What was unlearned shows as single positions near the energy of a model that knows nothing, between stretches of fluent
    talk about something else that a mean would dilute. One such position is also what a retained answer may have (the
    first digit of a year); `count` of them are not.
    """

    count: int

    @property
    def lookahead(self) -> int:
        return self.count

    def start(self, n_rows: int) -> RunningStatistic:
        return _RunningHighest(self.count, n_rows)


@dataclass(frozen=True)
class MaxOf(Score):
    """Largest of several scores, each standardised (median, 1.4826 MAD) by its own values over retained requests."""

    parts: tuple[Score, ...]
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def lookahead(self) -> int:
        return max(part.lookahead for part in self.parts)

    @property
    def positions(self) -> int | None:
        each = [part.positions for part in self.parts if part.positions is not None]
        return max(each) if len(each) == len(self.parts) else None

    def start(self, n_rows: int) -> RunningStatistic:
        n = len(self.parts)
        return _RunningMaxOf([p.start(n_rows) for p in self.parts], self.centre or (0.0,) * n, self.scale or (1.0,) * n)

    def fit(self, retained: Sequence[Sequence[float]]) -> Score:
        parts = tuple(part.fit(retained) for part in self.parts)
        pairs = [robust(request_scores(part, retained)) for part in parts]
        return MaxOf(parts, tuple(c for c, _ in pairs), tuple(s for _, s in pairs))


class _RunningMean(RunningStatistic):
    """Standardised mean of the positions so far, looked at from `first` to the last position that `centre` has an entry for."""

    def __init__(self, centre: Floats, scale: Floats, first: int, n_rows: int) -> None:
        self.centre, self.scale, self.first = centre, scale, first
        self.total = np.zeros(n_rows)
        self.position = -1

    def update(self, energies: Floats) -> Floats | None:
        self.position += 1
        if self.position >= len(self.centre):
            return None
        self.total = self.total + energies
        return self.end() if self.position >= self.first else None

    def end(self) -> Floats | None:
        if self.position >= len(self.centre):
            return None
        return np.asarray((self.total / (self.position + 1) - self.centre[self.position]) / self.scale[self.position])

    def reorder(self, rows: Indices) -> None:
        self.total = self.total[rows]


class _RunningWindow(RunningStatistic):
    """Mean of the last `width` positions; of all there are when the answer ends earlier."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.kept: list[Floats] = []

    def update(self, energies: Floats) -> Floats | None:
        self.kept = [*self.kept, energies][-self.width :]
        return self.end() if len(self.kept) == self.width else None

    def end(self) -> Floats | None:
        total = sum(self.kept[1:], self.kept[0])  # in this order for any number of rows, so that a batch changes no bit
        return total / len(self.kept)

    def reorder(self, rows: Indices) -> None:
        self.kept = [energies[rows] for energies in self.kept]


class _RunningHighest(RunningStatistic):
    """Mean of the `count` highest energies so far; of all there are when the answer ends earlier."""

    def __init__(self, count: int, n_rows: int) -> None:
        self.highest = np.full((count, n_rows), -math.inf)
        self.positions = 0

    def update(self, energies: Floats) -> Floats | None:
        self.positions += 1
        self.highest = np.sort(np.concatenate([self.highest, energies[np.newaxis]]), axis=0)[1:]
        return self.end() if self.positions >= len(self.highest) else None

    def end(self) -> Floats | None:
        kept = self.highest[-self.positions :]
        return np.asarray(sum(kept[1:], kept[0]) / len(kept))  # in this order for any number of rows, as above

    def reorder(self, rows: Indices) -> None:
        self.highest = self.highest[:, rows]


class _RunningMaxOf(RunningStatistic):
    """The largest of the parts' standardised looks."""

    def __init__(self, parts: list[RunningStatistic], centre: Sequence[float], scale: Sequence[float]) -> None:
        self.parts, self.centre, self.scale = parts, centre, scale

    def update(self, energies: Floats) -> Floats | None:
        return self._largest([part.update(energies) for part in self.parts])

    def end(self) -> Floats | None:
        return self._largest([part.end() for part in self.parts])

    def reorder(self, rows: Indices) -> None:
        for part in self.parts:
            part.reorder(rows)

    def _largest(self, looks: list[Floats | None]) -> Floats | None:
        made = zip(looks, self.centre, self.scale, strict=True)
        standard = [(look - centre) / scale for look, centre, scale in made if look is not None]
        return reduce(np.maximum, standard) if standard else None


class RunningScore:
    """The running scores of B answers in generation: feed one position at a time, read `best` [B].

    `best` is -inf before a row's first look. A row that ended stays as it is, whatever is fed for it afterwards.
    """

    def __init__(self, score: Score, n_rows: int) -> None:
        self._statistic = score.start(n_rows)
        self.best: Floats = np.full(n_rows, -math.inf)
        self.active: Bools = np.ones(n_rows, dtype=np.bool_)

    def update(self, energies: Floats, ended: Bools | None = None) -> Floats:
        """Take the next position's energies [B], and say which answers end there (None: none does). Returns `best`."""
        if not math.isfinite(energies.sum()):
            finite = np.isfinite(energies)
            self.best = np.where(self.active & ~finite, math.inf, self.best)
            energies = np.where(finite, energies, 0.0)
        self.best = self._best_with(self._statistic.update(energies), self.active)
        if ended is not None:
            self.best = self._best_with(self._statistic.end(), self.active & ended)
            self.stop(ended)
        return self.best

    def if_ended(self) -> Floats:
        """What `best` [B] would be if every answer that goes on ended at the position taken last. Changes nothing."""
        return self._best_with(self._statistic.end(), self.active)

    def reorder(self, rows: Indices) -> None:
        """Go on with these answers in these places, [B]: one may be left out, or go on as several (beams)."""
        self._statistic.reorder(rows)
        self.best = self.best[rows]
        self.active = self.active[rows]

    def stop(self, rows: Bools) -> None:
        """Leave these rows as they are from here on."""
        self.active = self.active & ~rows

    def finish(self) -> Floats:
        """End the answers that are still going on (the length limit). Returns `best`, now final."""
        self.best = self.if_ended()
        self.stop(self.active)
        return self.best

    def _best_with(self, look: Floats | None, rows: Bools) -> Floats:
        return self.best if look is None else np.where(rows, np.maximum(self.best, look), self.best)


def request_scores(score: Score, energies: Sequence[Sequence[float]]) -> Floats:
    """The score of each request, [N], from the energies of its answer (at least one position each)."""
    if not energies:
        return np.zeros(0)
    lengths = np.array([len(row) for row in energies])
    if lengths.min() == 0:
        raise GateError("a request without a single energy cannot be scored")
    width = int(lengths.max())
    padded = np.array([[*row, *[0.0] * (width - len(row))] for row in energies], dtype=np.float64)
    running = RunningScore(score, len(energies))
    for position in range(width):
        running.update(padded[:, position], lengths == position + 1)
    return running.best


def running_scores(score: Score, energies: Sequence[float]) -> list[float]:
    """The running score after each position of one answer; -inf before the first look."""
    running = RunningScore(score, 1)
    last = len(energies) - 1
    return [float(running.update(np.array([e]), np.array([t == last]))[0]) for t, e in enumerate(energies)]


def robust(values: Floats) -> tuple[float, float]:
    """(median, 1.4826 * median absolute deviation), the latter at least `SMALLEST_SCALE`."""
    centre = float(np.median(values))
    return centre, max(1.4826 * float(np.median(np.abs(values - centre))), SMALLEST_SCALE)


DEFAULT = "highest-2"
"""The score without forget prompts to choose by, and where none is measurably better."""

CANDIDATES: Mapping[str, Score] = {
    "highest-2": Highest(2),
    "highest-3": Highest(3),
    "early-or-window": MaxOf((MaxOverLooks(first=1, last=9), TrailingWindow(4))),
    "window-4": TrailingWindow(4),
    "window-8": TrailingWindow(8),
    "max-over-looks": MaxOverLooks(first=0, last=9),
    "first-8": FirstTokens(8),
    "first-6": FirstTokens(6),
    "first-4": FirstTokens(4),
    "first-2": FirstTokens(2),
    "prompt": FirstTokens(1),
}
"""Every score that calibration measures, the preferred first."""

_KINDS: Mapping[str, type[Score]] = {
    "first_tokens": FirstTokens,
    "max_over_looks": MaxOverLooks,
    "trailing_window": TrailingWindow,
    "highest": Highest,
    "max_of": MaxOf,
}
"""The names of the statistics in the gate file."""


def score_to_json(score: Score) -> dict[str, Any]:
    """A score as plain JSON values: its kind and its fields."""
    kind = next(name for name, score_type in _KINDS.items() if score_type is type(score))
    if isinstance(score, MaxOf):
        parts = [score_to_json(part) for part in score.parts]
        return {"kind": kind, "parts": parts, "centre": list(score.centre), "scale": list(score.scale)}
    fields = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(score).items()}  # type: ignore[call-overload]
    return {"kind": kind, **fields}


def score_from_json(value: Mapping[str, Any]) -> Score:
    """The score that `score_to_json` wrote. Raises `GateError` for what it did not write."""
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items() if name != "kind"}
    try:
        if "parts" in fields:
            fields["parts"] = tuple(score_from_json(part) for part in fields["parts"])
        return _KINDS[value["kind"]](**fields)
    except (KeyError, TypeError) as error:
        raise GateError(f"the gate file names a score that this version does not know ({error}); recalibrate") from None
