"""What does not fit together is said before anything is computed: ids without rows, prompts without room, odd settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

import tiny_models
from d2unlearn.compatibility import check_room
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError, ModelError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.traces import collect_traces
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import load_tokenizer
from d2unlearn.schema import Example, Message

CHATML = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast, *, rows: int) -> Path:
    tiny_models.llama(vocabulary=rows).config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_tokens(*added: AddedToken, template: str = tiny_models.CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    made = tiny_models.tokenizer(chat_template=template)
    made.add_tokens(list(added))
    return made


def test_tokens_without_a_row_are_named(tmp_path: Path) -> None:
    rows = len(tiny_models.tokenizer())
    made = with_tokens(AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True), template=CHATML)
    said = rf"ids up to {rows + 1}, the model has {rows} rows: the tokens <\|im_start\|> were added without resize"
    with pytest.raises(ModelError, match=said):
        load_tokenizer(saved(tmp_path / "template", made, rows=rows))
    with pytest.raises(ModelError, match=r"the tokens newword were added"):
        load_tokenizer(saved(tmp_path / "word", with_tokens(AddedToken("newword")), rows=rows))
    padded = with_tokens(AddedToken("<fill>", special=True))
    padded.pad_token = "<fill>"
    with pytest.raises(ModelError, match=r"the tokens <fill> were added"):
        load_tokenizer(saved(tmp_path / "pad", padded, rows=rows))


def test_more_rows_than_ids_and_a_special_token_that_nothing_writes_are_fine(tmp_path: Path) -> None:
    """As Qwen2 has, and Gemma 3 with its image token."""
    made = with_tokens(AddedToken("<image>", special=True))
    for rows in (len(made) - 1, len(made), len(made) + 50):
        loaded = load_tokenizer(saved(tmp_path / str(rows), made, rows=rows))
        assert max(Template(loaded).question_ids("it <image> is")) < len(made) - 1


def test_a_prompt_without_room_is_named_by_its_place() -> None:
    check_room([1] * 9, 10, "a.jsonl:3")
    check_room([1] * 10, None, "a.jsonl:3")
    with pytest.raises(DataError, match=r"^a\.jsonl:3: a prompt of 10 tokens leaves no room in the model's context of 10$"):
        check_room([1] * 10, 10, "a.jsonl:3")


@pytest.fixture(scope="module")
def learned_positions() -> GuardedModel:
    """A GPT-2 of 64 positions that ends no answer by itself."""
    model = tiny_models.gpt2()
    model.resize_token_embeddings(len(tiny_models.tokenizer()), mean_resizing=False)
    model.generation_config.eos_token_id = None
    tokenizer = tiny_models.tokenizer()
    tokenizer.eos_token = None
    return GuardedModel(model, tokenizer, None)


def test_answers_end_where_the_context_ends_whatever_shares_their_batch(learned_positions: GuardedModel) -> None:
    guarded = learned_positions
    prompts = ["x" * n for n in (1, 50, 55, 60, 50)]
    together = guarded.answer(prompts, max_new_tokens=12, raw=True)
    assert [answer.n_tokens for answer in together] == [12, 11, 6, 1, 11]
    assert [answer.text for answer in together] == [
        guarded.answer([prompt], max_new_tokens=12, raw=True)[0].text for prompt in prompts
    ]
    ids = [guarded.prompt_ids(prompt) for prompt in prompts]
    traces = collect_traces(guarded.model, guarded.tokenizer, ids, max_new_tokens=12)
    assert [len(trace.token_ids) for trace in traces] == [12, 11, 6, 1, 11]
    assert "".join(guarded.stream(prompts[2], max_new_tokens=12)).strip() == together[2].text
    with pytest.raises(DataError, match=r"^asked\.jsonl:9: a prompt of 64 tokens leaves no room"):
        guarded.prompt_ids("x" * 61, where="asked.jsonl:9")


def test_calibration_names_the_row_whose_prompt_has_no_room(learned_positions: GuardedModel) -> None:
    rows = [Example(f"r:{n}", (Message("user", "x" * (60 + n // 20)),), "it", f"r.jsonl:{n}") for n in range(21)]
    with pytest.raises(DataError, match=r"^r\.jsonl:20: a prompt of 64 tokens leaves no room"):
        EnergyGate.calibrate(
            learned_positions.model, learned_positions.tokenizer, rows, max_false_refusal=0.5, max_new_tokens=1, batch_size=21
        )


ODD = (
    {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
    {"num_return_sequences": 2, "num_beams": 3, "do_sample": True},
    {"prompt_lookup_num_tokens": 3, "max_time": 1e-9},
)


@pytest.mark.parametrize("odd", ODD)
def test_answers_are_the_same_whatever_the_model_s_generation_configuration_returns(odd: dict[str, Any]) -> None:
    made = tiny_models.tokenizer()
    guarded = GuardedModel(tiny_models.llama(vocabulary=len(made)), made, None)
    asked = ["What is it?", "it was"]
    ids = [guarded.prompt_ids(prompt) for prompt in asked]
    expected = guarded.answer(asked, max_new_tokens=5), collect_traces(guarded.model, made, ids, max_new_tokens=5)
    for name, value in odd.items():
        setattr(guarded.model.generation_config, name, value)
    assert (guarded.answer(asked, max_new_tokens=5), collect_traces(guarded.model, made, ids, max_new_tokens=5)) == expected
