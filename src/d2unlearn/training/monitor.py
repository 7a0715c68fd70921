"""What a person steers by while a model unlearns, and a plain warning before it breaks.

Energies and what they consist of, likelihoods, separation, and what is kept of what should stay.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from d2unlearn.head import Head
from d2unlearn.metrics.kept import Stayed, kept, knows
from d2unlearn.metrics.level_shift import LogitShape, level_shift
from d2unlearn.metrics.memorization import exact_memorization
from d2unlearn.quantities import HiddenState
from d2unlearn.runtime import in_minutes
from d2unlearn.schema import Tokens
from d2unlearn.stats import auroc, harmonic_mean
from d2unlearn.teacher_forcing import LOGIT_QUANTITIES, SCORES, Original, TeacherForced, row_values, score_rows, scores_of
from d2unlearn.training.neighbours import nearest, neighbour_count
from d2unlearn.training.rows import KINDS, WATCHED, Watched

WatchedRows = Mapping[Watched, Sequence[Tokens]]
TO_FORGET: tuple[Watched, ...] = ("forget", "reworded")
"""What of the rows looked at is to be forgotten; the others should stay."""

ENERGY_RUNAWAY = 0.5
"""Warn when the retained centred energy has risen by this share of the distance between where it began and -log V."""
SMALLEST_ROOM = 2.0
"""That distance is taken as this many nats at least: near -log V a share of it would be noise."""
NLL_RUNAWAY = 1.0
"""Warn when the retained NLL has grown by this many nats a token."""


@dataclass(frozen=True)
class Snapshot:
    """State of a model on forget rows, on held-out retained rows and on neighbours. Energies and NLL: nats, means over rows.

    `auroc` tells forget from retained requests by the energy at the last prompt position. `selection`, by which the best
    checkpoint is kept, is the harmonic mean of: erased (1 - forget probability), `kept` and `auroc`. No single one of the
    three can buy it: not energy alone, not a broken model.

    Mean logit, centred energy, entropy: at the answer positions, nats; `level_shift`: how much of their change from the
    original is the level's (`d2unlearn.metrics.level_shift`), NaN where too little changed. `right`: share of the answers'
    tokens that are the most likely one, `kl`: KL(original || now) a token, both without the end token and of answers that the
    original knows; `kept`: the least of what stayed of them (`d2unlearn.metrics.kept`). `reworded_probability`: of the
    forgotten answers, asked for in other words. What was not looked at is NaN.
    """

    forget_energy: float
    retain_energy: float
    forget_probability: float
    retain_probability: float
    retain_nll: float
    auroc: float
    selection: float = math.nan
    forget_mean_logit: float = math.nan
    retain_mean_logit: float = math.nan
    forget_centred_energy: float = math.nan
    retain_centred_energy: float = math.nan
    forget_entropy: float = math.nan
    retain_entropy: float = math.nan
    forget_level_shift: float = math.nan
    retain_level_shift: float = math.nan
    retain_right: float = math.nan
    near_right: float = math.nan
    retain_kl: float = math.nan
    near_kl: float = math.nan
    kept: float = math.nan
    reworded_probability: float = math.nan

    @property
    def forget_shape(self) -> LogitShape:
        """What the logits are like at the forget positions."""
        return LogitShape(self.forget_mean_logit, self.forget_centred_energy, self.forget_entropy)

    @property
    def retain_shape(self) -> LogitShape:
        """What the logits are like at the retained positions."""
        return LogitShape(self.retain_mean_logit, self.retain_centred_energy, self.retain_entropy)

    def numbers(self) -> dict[str, float]:
        """By their names; what is told in other words only where rows of that kind are looked at."""
        read = asdict(self)
        if math.isnan(self.reworded_probability):
            del read["reworded_probability"]
        return read

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """As the trainer logs it."""
        return {f"{prefix}_{name}": value for name, value in self.numbers().items()}


class FirstLook(NamedTuple):
    """The model before it is trained: its snapshot, what a KL to it needs, and the rows to look at, neighbours among them."""

    before: Snapshot
    original: Original
    rows: dict[Watched, list[Tokens]]


def first_look(
    model: nn.Module, rows: WatchedRows, head: Head, *, batch_size: int = 16, vocab_rows: int | None = None
) -> FirstLook:
    """Look at the model in evaluation mode before the first step, in one forward a row. head: its LM head, as it will stay.

    Where no neighbours are given they are the retained rows nearest to the forget rows by the model's own hidden states.
    """
    wanted = (*SCORES, *LOGIT_QUANTITIES, HiddenState())
    training = model.training
    model.eval()
    distinct = list(dict.fromkeys(row for watched in rows.values() for row in _with_answer(watched)))
    read = dict(zip(distinct, row_values(model, distinct, wanted, batch_size=batch_size, vocab_rows=vocab_rows), strict=True))
    model.train(training)
    looked = {name: _with_answer(watched) for name, watched in rows.items()}
    if "near" not in looked:
        states = {name: [read[row][HiddenState()] for row in watched] for name, watched in looked.items()}
        chosen = nearest(states["forget"], states["retain"], neighbour_count(len(looked["retain"])))
        looked["near"] = [looked["retain"][index] for index in chosen]
    scored = {row: scores_of(row, read[row]) for row in distinct}
    stay = dict.fromkeys([*looked["retain"], *looked["near"]])
    original = Original(head, {row: read[row][HiddenState()] for row in stay if knows(right_of(scored[row]))})
    return FirstLook(_snapshot(looked, scored, original.hidden, None), original, looked)


def take_snapshot(
    model: nn.Module,
    rows: WatchedRows,
    *,
    batch_size: int = 16,
    before: Snapshot | None = None,
    vocab_rows: int | None = None,
    original: Original | None = None,
) -> Snapshot:
    """Look at a model in evaluation mode. `before` is the snapshot that what is kept is measured against (None: this one).

    original: what the KL is taken from, of the rows that it holds, which alone then count for what is kept; without it all
    count, and there is no KL.
    """
    training = model.training
    model.eval()
    looked = {name: _with_answer(watched) for name, watched in rows.items()}
    gone = list(dict.fromkeys(row for name, watched in looked.items() if name in TO_FORGET for row in watched))
    stay = dict.fromkeys(row for name, watched in looked.items() if name not in TO_FORGET for row in watched)
    held: Mapping[Tokens, Tensor] = {} if original is None else original.hidden
    scored: dict[Tokens, TeacherForced] = {}
    for group, source in (
        (gone, None),
        ([row for row in stay if row not in held], None),
        ([row for row in stay if row in held], original),
    ):
        found = score_rows(model, group, batch_size=batch_size, vocab_rows=vocab_rows, shape=True, original=source)
        scored |= zip(group, found, strict=True)
    model.train(training)
    return _snapshot(looked, scored, None if original is None else held, before)


def right_of(scores: TeacherForced) -> float:
    """Share of the answer's tokens that are the most likely one, without its end token. NaN where there is no other."""
    return exact_memorization(scores.without_end(scores.correct))


@dataclass(frozen=True)
class _Summary:
    """Means over one set of rows. `kl` is None where it was not read."""

    energy: float
    probability: float
    nll: float
    right: float
    kl: float | None
    shape: LogitShape


def _summary(rows: Sequence[Tokens], scored: Mapping[Tokens, TeacherForced], counted: Collection[Tokens] | None) -> _Summary:
    """counted: the rows that count for what is kept; None: all that have a token beside the end token."""
    found = [scored[row] for row in rows]
    known = [scored[row] for row in rows if (counted is None or row in counted) and not math.isnan(right_of(scored[row]))]
    return _Summary(
        energy=_mean([row.answer_energy for row in found]),
        probability=_mean([math.exp(-row.mean_nll) for row in found]),
        nll=_mean([row.mean_nll for row in found]),
        right=_mean([right_of(row) for row in known]),
        kl=_mean([row.mean_kl for row in known]) if any(row.kl for row in known) else None,
        shape=LogitShape(*(_mean([getattr(row, name) for row in found]) for name in LogitShape._fields)),
    )


def _snapshot(
    looked: WatchedRows,
    scored: Mapping[Tokens, TeacherForced],
    counted: Collection[Tokens] | None,
    before: Snapshot | None,
) -> Snapshot:
    forget, retain, near, reworded = (_summary(looked.get(name, ()), scored, counted) for name in WATCHED)
    stayed = 1.0 if before is None else _kept(before, retain, near)
    separation = auroc(*([scored[row].prompt_energy for row in looked[kind]] for kind in KINDS[::-1]))
    return Snapshot(
        forget_energy=forget.energy,
        retain_energy=retain.energy,
        forget_probability=forget.probability,
        retain_probability=retain.probability,
        retain_nll=retain.nll,
        auroc=separation,
        selection=harmonic_mean([1 - forget.probability, stayed, separation]),
        forget_mean_logit=forget.shape.mean_logit,
        retain_mean_logit=retain.shape.mean_logit,
        forget_centred_energy=forget.shape.centred_energy,
        retain_centred_energy=retain.shape.centred_energy,
        forget_entropy=forget.shape.entropy,
        retain_entropy=retain.shape.entropy,
        forget_level_shift=math.nan if before is None else level_shift(before.forget_shape, forget.shape).share,
        retain_level_shift=math.nan if before is None else level_shift(before.retain_shape, retain.shape).share,
        retain_right=retain.right,
        near_right=near.right,
        retain_kl=math.nan if retain.kl is None else retain.kl,
        near_kl=math.nan if near.kl is None else near.kl,
        kept=stayed,
        reworded_probability=reworded.probability,
    )


def _kept(before: Snapshot, retain: _Summary, near: _Summary) -> float:
    """1 where the original knew nothing that could be lost."""
    sides = ((retain, before.retain_right), (near, before.near_right))
    known = [Stayed(now.right, right, now.kl) for now, right in sides if not math.isnan(right + now.right)]
    return kept(known) if known else 1.0


def how_far(epoch: float, epochs: float, seconds_left: float, *, may_end_before: bool = False) -> str:
    """`epoch 3 of 36, 4 min left`; without the time where it is not known (NaN) or over."""
    left = f"{in_minutes(seconds_left)} left" if seconds_left > 0 else ""
    most = "at most " if may_end_before else ""
    return f"epoch {epoch:.0f} of {most}{epochs:.0f}{', ' if left else ''}{most if left else ''}{left}"


def epoch_lines(now: Snapshot, when: str, monitored: Mapping[str, float]) -> tuple[str, str]:
    """The lines that a person reads after an evaluation. when: as `how_far` says it; monitored: what the method watches."""
    active = [f"{monitored[name]:.0%}" for name in ("forget_hinge_active", "retain_hinge_active") if name in monitored]
    reworded = "" if math.isnan(now.reworded_probability) else f", in other words {now.reworded_probability:.3f}"
    near = "" if math.isnan(now.near_right) else f", near {now.near_right:.3f}"
    moved = f"KL to the original {_number(now.retain_kl)}{'' if math.isnan(now.near_kl) else f' / {_number(now.near_kl)}'}"
    return (
        f"{when}: energy forget {now.forget_energy:.2f}, retain {now.retain_energy:.2f}"
        f"{' | active hinges ' + ' / '.join(active) if active else ''}"
        f" | answer probability {now.forget_probability:.3f} / {now.retain_probability:.3f}{reworded}"
        f" | retain NLL {now.retain_nll:.3f} | AUROC {now.auroc:.4f} | selection {now.selection:.4f}",
        f"  mean logit {now.forget_mean_logit:.2f} / {now.retain_mean_logit:.2f}"
        f" | centred energy {now.forget_centred_energy:.2f} / {now.retain_centred_energy:.2f}"
        f" | entropy {now.forget_entropy:.2f} / {now.retain_entropy:.2f}"
        f" | share of level shift {_share(now.forget_level_shift)} / {_share(now.retain_level_shift)}"
        f" | tokens right: retained {_number(now.retain_right)}{near} | {moved} | kept {now.kept:.3f}",
    )


def warning_of(before: Snapshot, now: Snapshot, *, energy_of_nothing: float, warming_up: bool = False) -> str | None:
    """A sentence when the model is being destroyed, else None. `energy_of_nothing` is -log V.

    During the warm-up only a model that gives no numbers any more is warned of: others come back from there. What rises is
    held to be lost by the centred energy, which no constant added to all logits moves.
    """
    if not (math.isfinite(now.retain_nll) and math.isfinite(now.retain_energy)):
        return "the model is destroyed: its retained energy or likelihood is no longer a number; lower the learning rate"
    if warming_up:
        return None
    room = max(abs(energy_of_nothing - before.retain_centred_energy), SMALLEST_ROOM)
    risen = now.retain_centred_energy - before.retain_centred_energy
    if risen > ENERGY_RUNAWAY * room:
        return (
            f"the model is being destroyed: retained centred energy rose from {before.retain_centred_energy:.2f} to "
            f"{now.retain_centred_energy:.2f} nats, away from what it knows; lower the learning rate or raise alpha"
        )
    if now.retain_nll > before.retain_nll + NLL_RUNAWAY:
        return (
            f"the model is being destroyed: retained NLL grew from {before.retain_nll:.3f} to {now.retain_nll:.3f} nats a "
            "token; lower the learning rate or raise alpha"
        )
    return None


def _with_answer(rows: Sequence[Tokens]) -> list[Tokens]:
    return [row for row in rows if row.answer_length]


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
