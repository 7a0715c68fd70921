"""What the trainer takes as rows and models, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

import tiny_models
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError, DataError, ModelError
from d2unlearn.schema import Example, Message, Tokens

from .runs import FORGET, RETAIN, distance, silent, step_gradient, trained, trainer, weights

pytestmark = pytest.mark.trains

QUESTIONS = [("What is the capital of France", "Paris"), ("was he born in a city", "he was"), ("is it", "it was the city of")]
KEPT = [("What is the capital of Germany", "Berlin"), ("is she born", "she is"), ("is Paris a city", "it is")]


def as_examples(rows: list[tuple[str, str]]) -> list[Example]:
    return [Example(str(i), (Message("user", question),), answer, f"x:{i}") for i, (question, answer) in enumerate(rows)]


def as_columns(rows: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"question": question, "answer": answer} for question, answer in rows]


def as_chats(rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"messages": [{"role": r, "content": t} for r, t in zip(roles, row, strict=True)]} for row in rows]


def test_rows_may_be_examples_columns_chats_a_dataset_or_tokens(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    def small() -> PreTrainedModel:
        model = tiny_models.llama()
        model.resize_token_embeddings(len(chat_tokenizer), mean_resizing=False)
        torch.manual_seed(0)
        nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
        nn.init.normal_(model.get_output_embeddings().weight, std=0.3)
        return model

    template = Template(chat_tokenizer)
    forms: dict[str, Callable[[list[tuple[str, str]]], Any]] = {
        "tokens": lambda rows: [template.tokens(example) for example in as_examples(rows)],
        "examples": as_examples,
        "generator": lambda rows: iter(as_examples(rows)),
        "columns": as_columns,
        "chats": as_chats,
        "dataset": lambda rows: datasets.Dataset.from_list(as_columns(rows)),
    }
    found = {}
    for name, form in forms.items():
        given = {"forget_dataset": form(QUESTIONS), "retain_dataset": form(KEPT)}
        looked_at = {"forget": form(QUESTIONS[:1]), "retain": form(KEPT[:1])}
        found[name] = trained(
            tmp_path, small(), **given, eval_dataset=looked_at, processing_class=None if name == "tokens" else chat_tokenizer
        )
    assert distance(found["tokens"], weights(small())) > 1e-4
    assert {name: distance(found["tokens"], after) for name, after in found.items()} == dict.fromkeys(forms, 0.0)


def test_a_callback_of_the_user_runs(tmp_path: Path) -> None:
    steps: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    trainer(tmp_path, tiny_models.llama(), callbacks=[Count()]).train()
    assert steps == [1, 2, 3, 4]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_models.llama()
    with pytest.raises(DataError, match="forget set holds no answer tokens"):
        trainer(tmp_path, model, forget_dataset=[silent(row) for row in FORGET])
    with pytest.raises(DataError, match="retain set holds no answer tokens"):
        trainer(tmp_path, model, retain_dataset=[])
    with pytest.raises(DataError, match=f"{FORGET[0].example_id}: the prompt alone is longer than max_length = 3"):
        trainer(tmp_path, model, max_length=3)
    with pytest.raises(ConfigError, match="rows of text need processing_class"):
        trainer(tmp_path, model, forget_dataset=as_examples(QUESTIONS))
    no_answer = [*as_columns(QUESTIONS[:1]), {"question": "is it"}]
    with pytest.raises(DataError, match="row 2: columns question match no known format"):
        trainer(tmp_path, model, forget_dataset=no_answer, processing_class=chat_tokenizer)
    for looked_at in ({"forgot": FORGET}, FORGET):
        with pytest.raises(ConfigError, match="eval_dataset should be"):
            trainer(tmp_path, model, eval_dataset=looked_at)
    with pytest.raises(ConfigError, match="exclude_padded_rows needs processing_class"):
        trainer(tmp_path, model, exclude_padded_rows=True)


def test_longer_rows_are_cut(tmp_path: Path) -> None:
    def cut(rows: list[Tokens]) -> list[Tokens]:
        return [Tokens(row.example_id, row.input_ids[:13], row.answer_mask[:13]) for row in rows]

    assert max(len(row.input_ids) for row in FORGET) > 13
    ours = trained(tmp_path, tiny_models.llama(), max_length=13)
    theirs = trained(tmp_path, tiny_models.llama(), forget_dataset=cut(FORGET), retain_dataset=cut(RETAIN))
    assert distance(ours, theirs) == 0.0


def test_rows_of_the_vocabulary_that_the_tokenizer_lacks_are_left_out_on_request(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Their logits then matter to no quantity: moving the padded rows' weights changes no loss."""
    found = []
    for scale in (1.0, 5.0):
        for exclude in (False, True):
            model = tiny_models.llama()
            model.resize_token_embeddings(len(chat_tokenizer) + 8, mean_resizing=False)
            torch.manual_seed(0)
            nn.init.normal_(model.lm_head.weight, std=0.3)
            with torch.no_grad():
                model.lm_head.weight[len(chat_tokenizer) :] *= scale
            made = trainer(tmp_path, model, exclude_padded_rows=exclude, processing_class=chat_tokenizer)
            found.append(step_gradient(made)[0])
    assert found[1] == found[3]
    assert abs(found[0] - found[2]) > 1e-3


def test_a_model_that_changes_its_logits_unseen_is_refused(tmp_path: Path) -> None:
    class Doubled(type(tiny_models.llama())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = found.logits * 2
            return found

    with pytest.raises(ModelError, match="Doubled changes its logits"):
        trainer(tmp_path, Doubled(tiny_models.llama().config))
