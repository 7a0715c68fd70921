"""What a user of the guarded model is told, kept batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

from d2unlearn.benchmark.cache import ResultCache
from d2unlearn.data.batching import by_length
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.runtime import progress
from d2unlearn.schema import Message


@dataclass(frozen=True)
class GuardedRequest:
    """A conversation to answer behind the gate. `limit`: tokens of the longest answer, None for the gate's own."""

    prompt: tuple[Message, ...]
    limit: int | None = None

    @property
    def key(self) -> object:
        return [self.prompt, self.limit]


def guarded_answers(
    guarded: GuardedModel, cache: ResultCache, requests: Sequence[GuardedRequest], *, batch_size: int, name: str
) -> list[Answer]:
    """The answer to each request, all of one limit. `name`: of the progress bar."""

    def compute(missing: list[GuardedRequest]) -> Iterator[list[tuple[GuardedRequest, object]]]:
        batches = list(by_length([sum(len(turn.content) for turn in request.prompt) for request in missing], batch_size))
        for indices in progress(batches, f"guarded answers, {name}", total=len(batches)):
            batch = [missing[index] for index in indices]
            answers = guarded.answer([r.prompt for r in batch], max_new_tokens=batch[0].limit, batch_size=batch_size)
            yield [(request, astuple(answer)) for request, answer in zip(batch, answers, strict=True)]

    gate = None if guarded.gate is None else guarded.gate.fingerprint
    return [Answer(*result) for result in cache.cached(f"guarded answer, gate {gate}", requests, compute)]
