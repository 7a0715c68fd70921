"""How long an audit will take: a probe of this model on this machine, and a bar in seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from d2unlearn.audit.claims import FORGET
from d2unlearn.audit.kept import PlannedPart
from d2unlearn.audit.parts import ANSWER_TOKENS, AuditRows, Cost, Subject
from d2unlearn.data.batching import pad_tokens
from d2unlearn.observation import observe
from d2unlearn.quantities import Nll
from d2unlearn.runtime import QUIET_SECONDS, say
from d2unlearn.teacher_forcing import score_rows

_PROBED = 16


@dataclass(frozen=True)
class Speed:
    """Seconds a row, on this machine: trained on, scored, answered."""

    trained: float
    scored: float
    answered: float

    def seconds(self, cost: Cost) -> float:
        """What such a part will take."""
        return cost.trained * self.trained + cost.scored * self.scored + cost.answered * self.answered


def measured_speed(subject: Subject, rows: AuditRows) -> Speed:
    """From a few forget rows, each thing done twice: what is set up at the first is not counted."""
    some = list(rows.forget[:_PROBED])
    asked = subject.rendered(FORGET, some).tokens
    prompts = [row.prompt for row in some if row.prompt]

    def train() -> None:
        batch = pad_tokens(asked, pad_id=0).to(subject.model.device)
        with torch.enable_grad():
            loss = observe(subject.model, {"forget": batch}, {"forget": (Nll(),)})["forget"][Nll()].mean()
            torch.autograd.grad(loss, [each for each in subject.model.parameters() if each.requires_grad])

    def score() -> None:
        score_rows(subject.model, asked, batch_size=_PROBED)

    def answer() -> None:
        subject.guarded.answer(prompts, max_new_tokens=ANSWER_TOKENS, batch_size=_PROBED, raw=True)

    answered = _seconds(answer) / len(prompts) if prompts else 0.0
    return Speed(_seconds(train) / len(asked), _seconds(score) / len(asked), answered)


def with_time_left(planned: Sequence[PlannedPart], speed: Speed, what: str) -> Iterator[PlannedPart]:
    """One part after another, under a bar in seconds; without a terminal with a line every half minute."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    costs = [speed.seconds(each.part.cost) for each in planned]
    started = last = time.monotonic()
    done = 0.0
    with tqdm(total=round(sum(costs)), desc=what, unit="s", leave=False, disable=not sys.stderr.isatty()) as bar:
        for number, (each, cost) in enumerate(zip(planned, costs, strict=True)):
            bar.set_postfix_str(f"{each.plan.title}, {each.subject.name}")
            now = time.monotonic()
            if bar.disable and now - last >= QUIET_SECONDS:
                last = now
                left = (now - started) * (sum(costs) - done) / done if done else sum(costs)
                say(f"{what}: {number} of {len(planned)} parts, {each.plan.title.lower()}; about {in_minutes(left)} left")
            yield each
            done += cost
            bar.update(cost)


def in_minutes(seconds: float) -> str:
    """For a person: seconds up to a minute and a half, minutes beyond."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _seconds(work: Callable[[], None]) -> float:
    work()
    started = time.monotonic()
    work()
    return time.monotonic() - started
