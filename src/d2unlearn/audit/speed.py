"""How long an audit will take: a probe of this model on this machine, how many threads suit it, and a bar in seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from d2unlearn.audit.claims import FORGET
from d2unlearn.audit.kept import PlannedPart
from d2unlearn.audit.parts import ANSWER_TOKENS, AuditRows, Part, Subject
from d2unlearn.data.batching import pad_tokens
from d2unlearn.observation import observe
from d2unlearn.quantities import Nll
from d2unlearn.runtime import QUIET_SECONDS, in_minutes, say
from d2unlearn.schema import Tokens
from d2unlearn.teacher_forcing import score_rows

_PROBED = 32


@dataclass(frozen=True)
class Speed:
    """Seconds a row, on this machine: trained on, scored, answered raw, and asked for what was forgotten behind the gate."""

    trained: float
    scored: float
    answered: float
    guarded: float

    def seconds(self, part: Part) -> float:
        """What a part will take. What is refused early is cheap; legitimate requests are answered behind a gate too."""
        cost, refused = part.cost, part.guarded and part.claim != "nothing_else"
        answered = self.guarded if refused else self.answered
        return cost.trained * self.trained + cost.scored * self.scored + cost.answered * answered


def measured_speed(subject: Subject, rows: AuditRows) -> Speed:
    """From a few forget rows, each thing done twice: what is set up at the first is not counted."""
    some = list(rows.forget[:_PROBED])
    asked = subject.rendered(FORGET, some).tokens
    prompts = [row.prompt for row in some if row.prompt]
    behind = subject.guarded if subject.guard is None else subject.guard

    def answer(raw: bool) -> float:
        if not prompts:
            return 0.0
        asking = partial(behind.answer, prompts, max_new_tokens=ANSWER_TOKENS, batch_size=_PROBED, raw=raw)
        return _seconds(asking) / len(prompts)

    trained, scored = (_seconds(partial(work, subject, asked)) / len(asked) for work in (_train, _score))
    raw = answer(raw=True)
    return Speed(trained, scored, raw, raw if subject.gate is None else answer(raw=False))


@contextmanager
def fitting_threads(subject: Subject, rows: AuditRows) -> Iterator[int]:
    """While entered, torch works with as many threads as train and score fastest: all that it has, half of them, or one.

    A small model is slower with many. On an accelerator, and where torch was given one thread, nothing is tried.
    """
    most = torch.get_num_threads()
    if most == 1 or subject.model.device.type != "cpu":
        yield most
        return
    asked = subject.rendered(FORGET, list(rows.forget[:_PROBED])).tokens
    taken = dict[int, float]()
    try:
        for threads in sorted({most, most // 2, 1}, reverse=True):
            torch.set_num_threads(threads)
            taken[threads] = sum(_seconds(partial(work, subject, asked)) for work in (_train, _score))
        fastest = min(taken, key=lambda threads: taken[threads])
        torch.set_num_threads(fastest)
        yield fastest
    finally:
        torch.set_num_threads(most)


def with_time_left(planned: Sequence[PlannedPart], speed: Speed, what: str) -> Iterator[PlannedPart]:
    """One part after another, under a bar in seconds; without a terminal with a line every half minute."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    costs = [speed.seconds(each.part) for each in planned]
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


def _train(subject: Subject, asked: Sequence[Tokens]) -> None:
    batch = pad_tokens(asked, pad_id=0).to(subject.model.device)
    with torch.enable_grad():
        loss = observe(subject.model, {"forget": batch}, {"forget": (Nll(),)})["forget"][Nll()].mean()
        torch.autograd.grad(loss, [each for each in subject.model.parameters() if each.requires_grad])


def _score(subject: Subject, asked: Sequence[Tokens]) -> None:
    score_rows(subject.model, asked, batch_size=_PROBED)


def _seconds(work: Callable[[], object]) -> float:
    work()
    started = time.monotonic()
    work()
    return time.monotonic() - started
