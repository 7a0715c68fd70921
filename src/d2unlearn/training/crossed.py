"""Rows that the model writes itself of what it should keep: one retained question with the names of another, and its answer.

They show what the model does beside the rows at hand, where no row was collected: a model that is held to itself on them too
keeps more of what training never sees. No forgotten row takes part, so none is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.data.batching import by_length, pad_left, until_end
from d2unlearn.data.template import Template
from d2unlearn.models import end_token_ids, generate_plainly, pad_token_id
from d2unlearn.runtime import progress
from d2unlearn.schema import Example, Tokens

_NAME = re.compile(r"(?<=[a-z,;:] )[A-Z][\w-]*(?:[ -][A-Z][\w-]*)+")
"""Two words with a capital or more, inside a sentence."""


def crossed_questions(rows: Sequence[Example], count: int, seed: int) -> list[str]:
    """At most `count` questions, no two alike and none of the rows', each with the name of another row in its name's place.

    Rows without a name in their question give none.
    """
    there = {row.question for row in rows}
    named = [(question, match) for question in sorted(there) if (match := _NAME.search(question))]
    names = sorted({match.group() for _, match in named})
    rng, made = Random(seed), dict[str, None]()
    for _ in range(4 * count if len(names) > 1 else 0):
        question, match = rng.choice(named)
        crossed = question.replace(match.group(), rng.choice(names))
        if crossed not in there:
            made[crossed] = None
        if len(made) == count:
            break
    return list(made)


def self_answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], *, longest: int, batch_size: int
) -> list[Tokens]:
    """The questions, in order, each with the model's greedy answer of at most `longest` tokens; empty answers are left out."""
    template, ends = Template(tokenizer), end_token_ids(model, tokenizer)
    prompts = [template.question_ids(question) for question in questions]
    rows: list[Tokens] = [Tokens("", (), ())] * len(prompts)
    batches = list(by_length([len(prompt) for prompt in prompts], batch_size))
    for indices in progress(batches, "answers to crossed questions", total=len(batches)):
        answers = _greedy(model, [prompts[index] for index in indices], pad_token_id(tokenizer), ends, longest)
        for index, answer in zip(indices, answers, strict=True):
            prompt = prompts[index]
            mask = (False,) * len(prompt) + (True,) * len(answer)
            rows[index] = Tokens(f"crossed-{index}", (*prompt, *answer), mask, ends=bool(answer) and answer[-1] in ends)
    return [row for row in rows if row.answer_length]


@torch.no_grad()
def _greedy(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int, ends: Sequence[int], longest: int
) -> Iterator[list[int]]:
    ids, mask = (tensor.to(model.device) for tensor in pad_left(prompts, pad))
    sequences = generate_plainly(model, ids, mask, max_new_tokens=longest, pad_id=pad, ends=ends)
    return (until_end(row, ends) for row in sequences[:, ids.shape[1] :].tolist())
