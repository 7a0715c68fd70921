"""The model that is asked: its greedy answers, kept in the cache as they come, and which names it takes for alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from d2unlearn.data.batching import pad_tokens
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import pad_token_id
from d2unlearn.runtime import progress
from d2unlearn.schema import Tokens
from d2unlearn.topic.making import TopicPlace
from d2unlearn.topic.table import TopicTable

_ALIKE = "I want to know more about {name}."
_VOTERS = 5


class AskedModel:
    """A model's raw greedy answers. Those that a file holds are not made again; new ones are added to it batch by batch."""

    def __init__(self, guarded: GuardedModel, file: Path, *, max_new_tokens: int, batch_size: int) -> None:
        self._guarded, self._file = guarded, file
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size
        self._known = dict(_read(file))

    def __call__(self, questions: Sequence[str]) -> list[str]:
        """The answer to each question, in order."""
        new = sorted({question for question in questions if question not in self._known}, key=len)
        batches = [new[start : start + self._batch_size] for start in range(0, len(new), self._batch_size)]
        for batch in progress(batches, "asking the model", total=len(batches)):
            made = self._guarded.answer(batch, max_new_tokens=self._max_new_tokens, batch_size=self._batch_size, raw=True)
            self._keep({question: answer.text for question, answer in zip(batch, made, strict=True)})
        return [self._known[question] for question in questions]

    def _keep(self, answers: dict[str, str]) -> None:
        self._known |= answers
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([question, answer], ensure_ascii=False) + "\n" for question, answer in answers.items())


def _read(file: Path) -> list[tuple[str, str]]:
    """The answers in a file; a last line that was cut short is left out."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [tuple(json.loads(line)) for line in lines if line.endswith("]\n")]


def place_of(topic: str, guarded: GuardedModel, table: TopicTable) -> TopicPlace:
    """The topic's kind and neighbours: by the cosine of hidden states at the end of one and the same sentence.

    They are read at half the depth, and the names' mean is taken off. The kind is that of most of the five nearest names, in a
    tie that of the nearest.
    """
    kinds = {name: kind for kind, members in table.kinds.items() for name in members.names}
    states = _states([topic, *kinds], guarded)
    states = torch.nn.functional.normalize(states - states[1:].mean(dim=0), dim=1)
    order = (states[1:] @ states[0]).argsort(descending=True).tolist()
    nearest = [list(kinds)[index] for index in order if list(kinds)[index].casefold() != topic.casefold()]
    itself = [kind for name, kind in kinds.items() if name.casefold() == topic.casefold()]
    voted = [kinds[name] for name in nearest[:_VOTERS]]
    return TopicPlace(itself[0] if itself else max(voted, key=voted.count), tuple(nearest))


@torch.no_grad()
def _states(names: Sequence[str], guarded: GuardedModel, *, batch_size: int = 64) -> Tensor:
    """[names, hidden size], float32."""
    texts = [tuple(guarded.template.text_ids(_ALIKE.format(name=name))) for name in names]
    rows = [Tokens(name, ids, (False,) * len(ids)) for name, ids in zip(names, texts, strict=True)]
    found = []
    for start in progress(range(0, len(rows), batch_size), "placing the topic"):
        cut = rows[start : start + batch_size]
        batch = pad_tokens(cut, pad_token_id(guarded.tokenizer))
        ids, mask = batch.input_ids.to(guarded.model.device), batch.attention_mask.to(guarded.model.device)
        states = guarded.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        last = [len(row.input_ids) - 1 for row in cut]
        found.append(states[len(states) // 2][torch.arange(len(cut)), last].float().cpu())
    return torch.cat(found)
