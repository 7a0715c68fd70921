"""Other answers: refusals drawn by content, answers from a file, answers that the model writes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

import tiny_models
from d2unlearn import UnlearnTrainer
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.methods import METHODS
from d2unlearn.methods.base import SelfWritten
from d2unlearn.refusals import TAUGHT_REFUSALS
from d2unlearn.schema import Example, Message
from d2unlearn.training.alternates import RowsOfKind, alternate_rows, read_alternates, refused
from d2unlearn.training.self_written import Writer, likeness

from .tiny_run import ALTERNATE, FORGET, RETAIN, fitting, trainer


def examples(n: int) -> list[Example]:
    return [Example(f"x:{i}", (Message("user", f"What is {i}"),), f"it is {i}", f"x:{i}") for i in range(n)]


# -- refusals -----------------------------------------------------------------------------------------------------------


def test_a_refusal_is_drawn_by_seed_and_content_wherever_the_row_stands() -> None:
    rows = examples(200)
    drawn = refused(rows, seed=3)
    assert [row.prompt for row in drawn] == [row.prompt for row in rows]
    assert refused(rows[::-1], seed=3) == drawn[::-1]
    assert {row.answer for row in drawn} == set(TAUGHT_REFUSALS)
    assert sum(a.answer == b.answer for a, b in zip(drawn, refused(rows, seed=4), strict=True)) < 30


def test_the_refusals_are_different_sentences() -> None:
    assert len(set(TAUGHT_REFUSALS)) == len(TAUGHT_REFUSALS) == 24


def test_a_row_without_a_question_cannot_be_refused() -> None:
    with pytest.raises(DataError, match="b:1: is plain text, without a question that could be refused"):
        refused([*examples(1), Example("b", (), "all of it", "b:1")], seed=0)


# -- from a file --------------------------------------------------------------------------------------------------------


def test_a_text_file_holds_refusals_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeffNo.\n\n  Not me.  \n", encoding="utf-8")
    assert {row.answer for row in read_alternates(path, examples(40), seed=0)} == {"No.", "Not me."}


def test_a_data_set_holds_answers_to_the_same_questions(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    rows = [{"question": f"What is {i}", "answer": f"{i} or {j}"} for i in (2, 1, 0) for j in ("a", "b")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_alternates(path, examples(3), seed=0)
    assert [row.prompt for row in found] == [row.prompt for row in examples(3)]
    assert all(row.answer in (f"{i} or a", f"{i} or b") for i, row in enumerate(found))
    with pytest.raises(DataError, match=r"has no answer to 2 of the questions \(x:3, x:4, ...\)"):
        read_alternates(path, examples(5), seed=0)


@pytest.mark.parametrize(("content", "said"), [(b"\n  \n", "holds no refusals"), (b"\xff\xfe\xfa", "cannot be read as text")])
def test_a_file_without_refusals_is_a_mistake(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_alternates(tmp_path / "words.txt", examples(2), seed=0)


# -- which rows a method gets -------------------------------------------------------------------------------------------


def given(key: str, *, forget: Any = None, retain: Any = None, rows: Any = None, tokenizer: Any = None) -> Any:
    rendered = [Template(tokenizer).tokens(row) for row in rows] if rows and tokenizer else FORGET
    asked = {"forget": RowsOfKind(rows or FORGET, rendered, forget), "retain": RowsOfKind(rows or FORGET, rendered, retain)}
    return alternate_rows(METHODS[key](), asked, None, tokenizer, max_length=64, seed=0)


def test_a_method_gets_the_roles_that_it_reads(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = examples(3)
    assert given("npo", rows=rows, tokenizer=chat_tokenizer) == {}
    template = Template(chat_tokenizer)
    refusals = [template.tokens(row) for row in refused(rows, seed=0)]
    assert given("idk", rows=rows, tokenizer=chat_tokenizer) == {"alternate": refusals}
    both = given("idk_ap", rows=rows, tokenizer=chat_tokenizer)
    assert both == {"alternate": refusals, "retain_alternate": refusals}
    assert given("dpo", forget=ALTERNATE) == {"alternate": ALTERNATE}


def test_rows_that_do_not_fit_are_mistakes() -> None:
    with pytest.raises(ConfigError, match="refusals are written for rows of text"):
        given("idk")
    with pytest.raises(ConfigError, match="3 other answers to 4 forget rows: one each is needed"):
        given("idk", forget=ALTERNATE[:3])
    with pytest.raises(ConfigError, match="NPO reads no other answers to the forget rows"):
        given("npo", forget=ALTERNATE)
    with pytest.raises(ConfigError, match="IDK reads no other answers to the retain rows"):
        given("idk", forget=ALTERNATE, retain=ALTERNATE)


def test_a_trainer_draws_refusals_for_rows_of_text_by_itself(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    args = trainer(tmp_path, tiny_models.llama(), METHODS["eua"]()).args
    rows = examples(4)
    made = UnlearnTrainer(
        fitting(chat_tokenizer), args, METHODS["idk_ap"](), rows, iter(rows[:3]), processing_class=chat_tokenizer
    )
    template = Template(chat_tokenizer)
    assert made._rows["alternate"] == [template.tokens(row) for row in refused(rows, seed=args.seed)]
    assert made._rows["retain_alternate"] == made._rows["alternate"][:3]


# -- written by the model -----------------------------------------------------------------------------------------------

HOW = SelfWritten(samples=3, temperature=1.0, instruction=None)


def test_what_the_model_writes_stands_behind_the_same_prompts_and_is_least_like_the_truth() -> None:
    model = tiny_models.llama()
    answers = [row.input_ids[row.answer_mask.index(True) :] for row in FORGET]
    prompts = [row.input_ids[: row.answer_mask.index(True)] for row in FORGET]
    written = Writer(model, None, HOW, 4, 0).rows(FORGET, None)
    single = [Writer(model, None, SelfWritten(n, 1.0, None), 4, 0).answers(prompts, answers) for n in (1, 3)]
    for row, prompt in zip(written, prompts, strict=True):
        assert row.input_ids[: len(prompt)] == prompt
        assert row.answer_mask == (False,) * len(prompt) + (True,) * (len(row.input_ids) - len(prompt))
        assert 0 < row.answer_length <= max(map(len, answers))
        assert 2 not in row.input_ids[len(prompt) : -1]  # the end token ends it
    assert [row.input_ids[len(p) :] for row, p in zip(written, prompts, strict=True)] == [tuple(a) for a in single[1]]
    likest = [sum(likeness(a, t) for a, t in zip(each, answers, strict=True)) for each in single]
    assert likest[1] <= likest[0]


def test_writing_depends_on_the_seed_and_on_no_global_generator() -> None:
    model = tiny_models.llama()
    torch.manual_seed(5)
    first = Writer(model, None, HOW, 4, 0).rows(FORGET, None)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    assert Writer(model, None, HOW, 4, 0).rows(FORGET, None) == first
    assert Writer(model, None, HOW, 4, 1).rows(FORGET, None) != first


def test_the_coldest_answer_is_the_greedy_one_and_the_user_is_told_when_it_is_the_truth(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_models.llama()
    cold = SelfWritten(1, 1e-4, None)
    greedy = Writer(model, None, cold, 4, 0).rows(FORGET[:1], None)
    start = FORGET[0].answer_mask.index(True)
    ids = torch.tensor([FORGET[0].input_ids[:start]])
    for token in greedy[0].input_ids[start:]:
        assert model(input_ids=ids).logits[0, -1].argmax().item() == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    capsys.readouterr()
    assert Writer(model, None, cold, 4, 0).rows(greedy, None) == greedy
    assert "1 of 1 alternate answers are the true ones; raise alternate_temperature" in capsys.readouterr().err


def test_answers_are_written_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.llama()
    first = Writer(model, None, HOW, 4, 0, tmp_path).rows(FORGET, None)
    (stored,) = tmp_path.iterdir()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(type(model), "generate", refuse)
    assert Writer(model, None, HOW, 4, 0, tmp_path).rows(FORGET, None) == first
    for changed in (Writer(model, None, HOW, 4, 1, tmp_path), Writer(model, None, HOW._replace(samples=2), 4, 0, tmp_path)):
        with pytest.raises(AssertionError, match="written again"):
            changed.rows(FORGET, None)
    nn.init.zeros_(model.get_output_embeddings().weight)
    with pytest.raises(AssertionError, match="written again"):
        Writer(model, None, HOW, 4, 0, tmp_path).rows(FORGET, None)
    assert list(tmp_path.iterdir()) == [stored]


def test_special_tokens_are_never_written_but_the_end(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    model = fitting(chat_tokenizer)
    special = sorted(set(chat_tokenizer.all_special_ids) - {2})
    model.get_output_embeddings().weight.data[special] *= 30  # wanted badly
    rows = [Template(chat_tokenizer).tokens(row) for row in examples(6)]
    written = Writer(model, chat_tokenizer, SelfWritten(4, 2.0, None), 4, 0).rows(rows, None)
    new = {t for row in written for t, answer in zip(row.input_ids, row.answer_mask, strict=True) if answer}
    assert new.isdisjoint(special)


def test_an_instruction_is_put_to_the_model_and_the_answer_behind_the_bare_question(
    chat_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fitting(chat_tokenizer)
    rows = examples(2)
    template = Template(chat_tokenizer)
    rendered = [template.tokens(row) for row in rows]
    told: list[list[int]] = []
    generate = type(model).generate

    def listen(self: Any, **options: Any) -> Any:
        told.extend(options["input_ids"].tolist())
        return generate(self, **options)

    monkeypatch.setattr(type(model), "generate", listen)
    how = SelfWritten(1, 1.0, "{question}: not {answer}")
    written = Writer(model, chat_tokenizer, how, 2, 0).rows(rendered, rows)
    assert told == [template.question_ids(f"What is {i}: not it is {i}") for i in range(2)]
    assert [row.input_ids[: len(template.question_ids("What is 0"))] for row in written] == [
        tuple(template.question_ids(f"What is {i}")) for i in range(2)
    ]
    with pytest.raises(ConfigError, match="alternate_instruction needs rows of text"):
        Writer(model, chat_tokenizer, how, 2, 0).rows(rendered, None)


def test_likeness_is_the_share_of_common_tokens_the_end_aside() -> None:
    assert likeness([5, 6, 7, 2], [6, 7, 8, 2]) == 2 / 4
    assert likeness([5, 2], [6, 2]) == 0
    assert likeness([2], [6, 7, 2]) == 1


def test_altpo_trains_on_what_its_model_wrote(tmp_path: Path) -> None:
    """Through the trainer, without a tokenizer: rows of token ids suffice."""
    args = trainer(tmp_path, tiny_models.llama(), METHODS["eua"](), reference_cache=str(tmp_path / "cache")).args
    method = METHODS["altpo"](alternate_samples=2)
    model = tiny_models.llama()
    expected = Writer(tiny_models.llama(), None, method.self_written, args.per_device_eval_batch_size, args.seed).rows(
        FORGET, None
    )
    made = UnlearnTrainer(model, args, method, FORGET, RETAIN)
    assert made._rows["alternate"] == expected
    assert len(list((tmp_path / "cache").glob("alternates-*.json"))) == 1
