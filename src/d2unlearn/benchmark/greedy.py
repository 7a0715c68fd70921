"""Greedy answers, with as little generation as they need.

The teacher-forced pass has shown how far greedy decoding follows the true answer and which token it gives instead of the next
one; generation goes on from there. (The truth serves as the draft of speculative decoding: each of its tokens is kept only
where it is the most likely one.) What is left is generated in batches of similar length, in rounds of growing length: what has
ended leaves the batch between two rounds, so one long answer does not hold up the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel

from d2unlearn.benchmark.loglikelihood import AnswerScores
from d2unlearn.data.batching import by_length, pad_left, until_end
from d2unlearn.models import generate_plainly
from d2unlearn.runtime import progress
from d2unlearn.schema import Tokens

ROUNDS = (32, 64)
"""Tokens of the first rounds; the last takes what is left."""
CHANGES_CHOICE = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "guidance_scale",
    "watermarking_config",
)
"""Fields of a generation configuration that let greedy decoding choose another token than the most likely one."""


@dataclass(frozen=True)
class GreedyRequest:
    """An answer to generate. limit: tokens of the longest, at least 1; known: its first tokens, found already; `done`: all."""

    prompt: tuple[int, ...]
    limit: int
    known: tuple[int, ...] = ()
    done: bool = False

    @property
    def key(self) -> object:
        return [self.prompt, self.limit]


def draft_of(row: Tokens, scores: AnswerScores, prompt: tuple[int, ...], ends: Sequence[int], limit: int) -> GreedyRequest:
    """What is known of the greedy answer to a prompt from the true answer's scores. row: the prompt with the true answer.

    Nothing is when the row does not begin with the prompt.
    """
    if prompt != row.input_ids[: len(prompt)] or scores.n != len(row.input_ids) - len(prompt):
        return GreedyRequest(prompt, limit)
    answer = row.input_ids[len(prompt) :]
    known = [*answer[: scores.right], *([] if scores.instead < 0 else [scores.instead])][:limit]
    end = next((index for index, token in enumerate(known) if token in ends), None)
    if end is not None:
        return GreedyRequest(prompt, limit, tuple(known[: end + 1]), done=True)
    return GreedyRequest(prompt, limit, tuple(known), done=len(known) == limit)


def decodes_plainly(config: GenerationConfig | None) -> bool:
    """Whether greedy decoding takes the most likely token at every step, as drafts assume."""
    plain = GenerationConfig()  # type: ignore[no-untyped-call]
    neutral = {name: (getattr(plain, name, None), None, 0, 1.0) for name in CHANGES_CHOICE}
    return config is None or all(getattr(config, name, None) in values for name, values in neutral.items())


def greedy_answers(
    model: PreTrainedModel,
    requests: Sequence[GreedyRequest],
    *,
    ends: Sequence[int],
    pad_id: int,
    batch_size: int,
    hidden_token: int | None = None,
    name: str = "",
) -> Iterator[list[tuple[GreedyRequest, tuple[int, ...]]]]:
    """(request, answer's tokens) of those that have ended, batch by batch; the end token, where there is one, is the last.

    `hidden_token`: the attention mask hides that id. Greedy by the model's own generation configuration. `name`: of the
    progress bars, none without.
    """
    answers = [list(request.known) for request in requests]
    yield [(request, request.known) for request in requests if request.done]
    going = [index for index, request in enumerate(requests) if not request.done]
    for length in (*ROUNDS, max((request.limit for request in requests), default=0)):
        rows = {index: [*requests[index].prompt, *answers[index]] for index in going}
        batches = [[going[i] for i in places] for places in by_length([len(row) for row in rows.values()], batch_size)]
        for batch in progress(batches, f"answers, {name}", total=len(batches)) if name else batches:
            room = min(length, max(requests[index].limit - len(answers[index]) for index in batch))
            new = _generated(model, [rows[index] for index in batch], room, ends, pad_id, hidden_token)
            for index, tokens in zip(batch, new, strict=True):
                answers[index] = (answers[index] + tokens)[: requests[index].limit]
            ended = [i for i in batch if answers[i][-1] in ends or len(answers[i]) == requests[i].limit]
            going = [index for index in going if index not in ended]
            yield [(requests[index], tuple(answers[index])) for index in ended]


@torch.inference_mode()
def _generated(
    model: PreTrainedModel, rows: Sequence[list[int]], room: int, ends: Sequence[int], pad_id: int, hidden: int | None
) -> list[list[int]]:
    """The next tokens of each row, `room` at most, up to its end token."""
    ids, mask = (t.to(model.device) for t in pad_left(rows, pad_id))
    if hidden is not None:
        mask = mask * (ids != hidden)
    sequences = generate_plainly(model, ids, mask, max_new_tokens=room, pad_id=pad_id, ends=ends)
    return [until_end(tokens, ends) for tokens in sequences[:, ids.shape[1] :].tolist()]
