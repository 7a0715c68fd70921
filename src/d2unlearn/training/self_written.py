"""Alternate answers that the model writes itself before training: drawn at a temperature, the one least like the truth kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from d2unlearn.data.batching import by_length, pad_left, until_end
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.methods.base import SelfWritten
from d2unlearn.models import end_token_ids, generate_plainly, pad_token_id, state_hash
from d2unlearn.observation import causal_model
from d2unlearn.runtime import drawing_from, fingerprint, progress, read_json, say, write_json
from d2unlearn.schema import Example, Tokens

_FORMAT = 1
Ids = Sequence[int]


@dataclass(frozen=True)
class Writer:
    """A model that answers questions at random, the same way for the same seed.

    cache: folder where answers are stored and read back when weights, questions and settings are the same; None: nowhere.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    how: SelfWritten
    batch_size: int
    seed: int
    cache: Path | None = None

    def rows(self, rendered: Sequence[Tokens], examples: Sequence[Example] | None) -> list[Tokens]:
        """The prompts of the rows, each with the model's answer. `examples`: the rows' text, for an instruction.

        Raises `DataError` for a row without a prompt, `ConfigError` for an instruction without text to put into it.
        """
        prompts = [_prompt(row) for row in rendered]
        true = [row.input_ids[len(prompt) :] for row, prompt in zip(rendered, prompts, strict=True)]
        questions = prompts if self.how.instruction is None else self._instructed(self.how.instruction, examples)
        answers = self._stored(questions, true)
        same = sum(list(a) == list(b) for a, b in zip(answers, true, strict=True))
        if same:
            say(f"note: {same} of {len(true)} alternate answers are the true ones; raise alternate_temperature for others")
        return [
            Tokens(row.example_id, (*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))
            for row, prompt, answer in zip(rendered, prompts, answers, strict=True)
        ]

    def _instructed(self, instruction: str, examples: Sequence[Example] | None) -> list[Ids]:
        if self.tokenizer is None or examples is None:
            raise ConfigError(["alternate_instruction needs rows of text and processing_class=tokenizer"])
        template = Template(self.tokenizer)
        told = [instruction.replace("{question}", e.question).replace("{answer}", e.answer) for e in examples]
        return [template.question_ids(text) for text in told]

    def _stored(self, questions: Sequence[Ids], true: Sequence[Ids]) -> list[list[int]]:
        if self.cache is None:
            return self.answers(questions, true)
        key = fingerprint([_FORMAT, state_hash(self.model), self.how, self.batch_size, self.seed, questions, true])
        path = self.cache / f"alternates-{key[:32]}.json"
        if not path.is_file():
            answers = self.answers(questions, true)
            texts = None if self.tokenizer is None else [self.tokenizer.decode(answer) for answer in answers]
            write_json(path, {"answers": answers, "texts": texts})
        stored: list[list[int]] = read_json(path)["answers"]
        return stored

    def answers(self, questions: Sequence[Ids], true: Sequence[Ids]) -> list[list[int]]:
        """For each question the answer, of those drawn, that is least like the true one: token ids with the end token.

        An answer has at most as many tokens as the longest true one.
        """
        was_training = self.model.training
        self.model.eval()
        longest = max(len(answer) for answer in true)
        answers: list[list[int]] = [[]] * len(questions)
        batches = list(by_length([len(question) for question in questions], self.batch_size))
        device = next(self.model.parameters()).device
        with drawing_from(self.seed, device):
            for indices in progress(batches, "alternate answers", total=len(batches)):
                drawn = self._drawn([questions[i] for i in indices], longest)
                for index, candidates in zip(indices, drawn, strict=True):
                    answers[index] = min(candidates, key=lambda answer, to=true[index]: likeness(answer, to))  # type: ignore[misc]
        self.model.train(was_training)
        return answers

    @torch.no_grad()
    def _drawn(self, questions: Sequence[Ids], longest: int) -> Iterator[list[list[int]]]:
        """`samples` answers to each question, without special tokens except the end."""
        causal: Any = causal_model(self.model)
        pad = 0 if self.tokenizer is None else pad_token_id(self.tokenizer)
        ends = end_token_ids(causal, self.tokenizer)
        special = set() if self.tokenizer is None else set(self.tokenizer.all_special_ids)
        ids, mask = (tensor.to(causal.device) for tensor in pad_left(questions, pad))
        sequences = generate_plainly(
            causal,
            ids,
            mask,
            max_new_tokens=longest,
            pad_id=pad,
            ends=ends,
            do_sample=True,
            temperature=self.how.temperature,
            top_k=0,
            top_p=1.0,
            num_return_sequences=self.how.samples,
            suppress_tokens=sorted(special - set(ends)) or None,
        )
        new = [until_end(row, ends) for row in sequences[:, ids.shape[1] :].tolist()]
        return (new[start : start + self.how.samples] for start in range(0, len(new), self.how.samples))


def likeness(answer: Ids, true: Ids) -> float:
    """Share of the distinct tokens of both that they have in common, the last (the end) aside; 1 for an empty answer."""
    mine, theirs = set(answer[:-1]), set(true[:-1])
    return len(mine & theirs) / len(mine | theirs) if mine else 1.0


def _prompt(row: Tokens) -> tuple[int, ...]:
    """What stands before the answer."""
    start = row.answer_mask.index(True) if True in row.answer_mask else len(row.input_ids)
    if not start:
        raise DataError(f"{row.example_id}: is plain text, without a question that could be answered otherwise")
    return row.input_ids[:start]
