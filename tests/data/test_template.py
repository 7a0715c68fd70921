"""One way to render a row: token by token as documented, and nothing that a person typed becomes a special token."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import tiny_models
from d2unlearn.data.records import example_of
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.methods import METHODS
from d2unlearn.schema import Example, Message, Tokens
from d2unlearn.training.trainer import UnlearnConfig, UnlearnTrainer

CHATML = (
    "{% for m in messages %}<q>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<q>assistant\n{% endif %}"
)
TYPED = "<eos>"


def tokenizer(template: str | None = tiny_models.CHAT_TEMPLATE, **tokens: str | None) -> PreTrainedTokenizerFast:
    made = tiny_models.tokenizer(chat_template=template)
    for name, value in tokens.items():
        setattr(made, name, value)
    return made


def pieces(made: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return [str(piece) for piece in made.convert_ids_to_tokens(ids)]


def parts(template: Template, row: Example) -> tuple[list[str], list[str]]:
    """(prompt, answer) of a rendered row as pieces; the answer is one stretch at the end."""
    tokens = template.tokens(row)
    length = tokens.answer_mask.index(True)
    assert tokens.answer_mask == (False,) * length + (True,) * (len(tokens.input_ids) - length)
    found = pieces(template.tokenizer, list(tokens.input_ids))
    return found[:length], found[length:]


def question(text: str, answer: str = "Paris") -> Example:
    return example_of({"question": text, "answer": answer}, "rows.jsonl:7")


def test_the_chat_template_is_used_and_the_end_token_belongs_to_the_answer() -> None:
    prompt, answer = parts(Template(tokenizer()), question("What is it?"))
    assert prompt == ["<bos>", "<q>", "What", " is", " it", "?", "<a>"]
    assert answer == ["Paris", "<eos>"]


def test_an_answer_that_the_tokenizer_joins_with_the_prompt_is_tokenised_apart() -> None:
    """A tokenizer with a token for two line breaks, as of Qwen and Llama 3, and a template that ends prompts with one."""
    core = json.loads(tiny_models.tokenizer().backend_tokenizer.to_str())
    core["model"]["vocab"]["\n\n"] = len(core["model"]["vocab"])
    core["pre_tokenizer"]["pattern"]["Regex"] = "\n\n|" + core["pre_tokenizer"]["pattern"]["Regex"]
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(core)), eos_token="<eos>")
    made.chat_template = CHATML
    assert parts(Template(made), question("it", "\nParis")) == (
        ["<q>", *"user", "\n", "it", "<eos>", "\n", "<q>", *"assistant", "\n"],
        ["\n", "Paris", "<eos>"],
    )
    assert parts(Template(made), question("it", "\n\nParis <eos>"))[1] == ["\n\n", "Paris", " ", *"<eos>", "<eos>"]


def test_a_template_that_raises_is_one_sentence_with_the_row() -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: the chat template fails: TypeError: can only concatenate str"):
        Template(tokenizer("{{ messages[0]['content'] + 1 }}")).tokens(question("it"))


def test_of_several_templates_the_default_is_taken_and_without_one_they_are_named() -> None:
    several = tokenizer({"default": tiny_models.CHAT_TEMPLATE, "tool_use": "{{ 1 }}"})  # type: ignore[arg-type]
    assert Template(several).tokens(question("it")) == Template(tokenizer()).tokens(question("it"))
    with pytest.raises(DataError, match=r"has the chat templates chat, tool_use and no default; save it with the one"):
        Template(tokenizer({"chat": tiny_models.CHAT_TEMPLATE, "tool_use": "{{ 1 }}"}))  # type: ignore[arg-type]


def test_without_a_chat_template_the_documented_plain_format_is_used() -> None:
    prompt, answer = parts(Template(tokenizer(None)), question("What is it?"))
    assert prompt == ["<bos>", "Question", ":", " What", " is", " it", "?", "\n", "Answer", ":"]
    assert answer == [" Paris", "<eos>"]


def test_the_plain_format_has_no_bos_where_the_tokenizer_has_none() -> None:
    prompt, answer = parts(Template(tokenizer(None, bos_token=None)), question("it"))
    assert prompt == ["Question", ":", " it", "\n", "Answer", ":"]
    assert answer == [" Paris", "<eos>"]
    assert parts(Template(tokenizer(None, bos_token=None, eos_token=None)), question("it"))[1] == [" Paris"]


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (tiny_models.CHAT_TEMPLATE, "<bos>in a city<q>What?<a>it<eos><q>he was<a>|Paris<eos>"),
        (None, "<bos>in a city\nQuestion: What?\nAnswer: it<eos>\nQuestion: he was\nAnswer:| Paris<eos>"),
        (
            CHATML,
            "<q>system\nin a city<eos>\n<q>user\nWhat?<eos>\n<q>assistant\nit<eos>\n<q>user\nhe was<eos>\n"
            "<q>assistant\n|Paris<eos>",
        ),
    ],
    ids=["chat", "plain", "chatml"],
)
def test_system_messages_and_earlier_turns_belong_to_the_prompt(template: str | None, rendered: str) -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    texts = ("in a city", "What?", "it", "he was", "Paris")
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    prompt, answer = parts(Template(tokenizer(template)), example_of({"messages": turns}))
    assert "".join(prompt) + "|" + "".join(answer) == rendered


@pytest.mark.parametrize("template", [tiny_models.CHAT_TEMPLATE, None, CHATML], ids=["chat", "plain", "chatml"])
def test_the_prompt_of_a_row_is_what_generation_starts_from(template: str | None) -> None:
    made = Template(tokenizer(template))
    for row in (question("What is it?"), question(f"a {TYPED} b<q>", f"{TYPED}Paris<a>")):
        tokens = made.tokens(row)
        length = tokens.answer_mask.index(True)
        assert list(tokens.input_ids[:length]) == made.prompt_ids(row.prompt) == made.question_ids(row.question)


def test_plain_text_is_all_answer_between_bos_and_eos() -> None:
    row = example_of({"text": f"Paris{TYPED} it"})
    prompt, answer = parts(Template(tokenizer()), row)
    assert (prompt, answer) == (["<bos>"], ["Paris", *TYPED, " it", "<eos>"])
    bare = Template(tokenizer(bos_token=None, eos_token=None)).tokens(row)
    assert bare.answer_mask == (True,) * 7
    assert bare.answer_length == 6  # no logits precede the first


@pytest.mark.parametrize("template", [tiny_models.CHAT_TEMPLATE, None], ids=["chat", "plain"])
@pytest.mark.parametrize("special", ["<pad>", "<bos>", "<eos>", "<unk>", "<q>", "<a>"])
def test_special_tokens_typed_in_a_message_become_plain_text(special: str, template: str | None) -> None:
    made = Template(tokenizer(template))
    typed = question(f"it{special}in{special}", f"a{special}city{special}")
    without = question("itin", "acity")
    ids, plain_ids = list(made.tokens(typed).input_ids), list(made.tokens(without).input_ids)
    number = made.tokenizer.convert_tokens_to_ids(special)
    assert ids.count(number) == plain_ids.count(number)
    assert "".join(pieces(made.tokenizer, ids)).count(special) == plain_ids.count(number) + 4
    assert parts(made, typed)[1][-1] == "<eos>"


def test_specials_inside_each_other_and_marks_of_our_own_stay_text() -> None:
    """What is left when the inner token's spelling is taken out must not close up to the outer one."""
    made = Template(tokenizer())
    prompt = parts(made, question("<e<eos>os>"))[0]
    assert prompt == ["<bos>", "<q>", *"<e<eos>os>", "<a>"]
    assert parts(made, question("<e\ue000os>\ue0000\ue001"))[0] == ["<bos>", "<q>", *"<eos>0", "<a>"]
    none = copy.deepcopy(made)
    none._typed = None
    assert pieces(made.tokenizer, none.question_ids("\ue0007\ue001"))[2:-1] == ["7"]


def test_a_spelling_typed_a_thousand_times_is_tokenised_once_and_stands_in_every_place(
    monkeypatch: pytest.MonkeyPatch, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    template = Template(chat_tokenizer)
    once, plain = template.text_ids("<eos>"), template.question_ids("is")
    asked: list[Any] = []
    call = type(chat_tokenizer).__call__

    def noted(self: Any, text: Any, *given: Any, **options: Any) -> Any:
        asked.append(text)
        return call(self, text, *given, **options)

    monkeypatch.setattr(type(chat_tokenizer), "__call__", noted)
    repeated = template.question_ids("<eos>" * 1000)
    assert len(asked) == 2  # the spelling, and all that stands between spellings
    assert repeated == [*plain[: plain.index(chat_tokenizer.convert_tokens_to_ids("is"))], *once * 1000, plain[-1]]
    mixed = template.question_ids("is<eos>" * 1000)
    assert len(asked) == 4
    assert mixed[2:-1] == [chat_tokenizer.convert_tokens_to_ids("is"), *once] * 1000


def test_unicode_and_whitespace_survive_rendering(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "  é\n\n{{ '{%' }} \\ue000 "
    prompt = parts(Template(chat_tokenizer), question(text))[0]
    assert "".join(prompt[2:-1]) == text


@pytest.mark.parametrize(
    "template",
    [
        "<bos>{% for m in messages %}<q>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}",
        "{{ messages | length }}{% for m in messages %}<q>{{ m['content'] }}{% endfor %}",
        "<bos>{{ messages[0]['content'] }}",
    ],
    ids=["another-generation-prompt", "a-count-first", "no-answer"],
)
def test_a_template_that_does_not_continue_the_prompt_is_refused(template: str) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: the chat template does not continue the prompt with the answer"):
        Template(tokenizer(template)).tokens(question("What?"))


def test_a_role_that_the_template_turns_down_is_named_with_the_row() -> None:
    strict = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    turns = [{"role": role, "content": "it"} for role in ("system", "user", "assistant")]
    row = example_of({"messages": turns}, "rows.jsonl:7")
    with pytest.raises(
        DataError, match=r"^rows\.jsonl:7: the chat template does not take the roles system, user.*: no system$"
    ):
        Template(tokenizer(strict)).tokens(row)
    turns[0]["role"] = "tool"
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: the plain format has no role tool; give the tokenizer a chat"):
        Template(tokenizer(None)).tokens(example_of({"messages": turns}, "rows.jsonl:7"))


def test_an_empty_conversation_is_no_prompt() -> None:
    with pytest.raises(DataError, match="at least one message"):
        Template(tokenizer()).prompt_ids(())


def test_what_the_template_writes_after_the_end_token_is_left_out() -> None:
    assert parts(Template(tokenizer(CHATML)), question("it"))[1] == ["Paris", "<eos>"]
    without_end = CHATML.replace("<eos>", ".")
    assert parts(Template(tokenizer(without_end)), question("it"))[1] == ["Paris", ".", "\n"]


def test_the_fingerprint_changes_with_the_rendering_and_with_nothing_else() -> None:
    chat = Template(tokenizer()).fingerprint
    assert chat == Template(tokenizer()).fingerprint
    assert len({chat, Template(tokenizer(None)).fingerprint, Template(tokenizer(CHATML)).fingerprint}) == 3
    assert Template(tokenizer(None, bos_token=None)).fingerprint != Template(tokenizer(None)).fingerprint
    assert Template(tokenizer(pad_token=None)).fingerprint == chat


def test_training_calibration_and_generation_read_the_same_ids(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    """The prompt with a typed end token, as each of the three hands it to the model."""
    model = tiny_models.llama(vocabulary=len(chat_tokenizer))
    rows = [question(f"What{TYPED} is it {number}?") for number in range(8)]
    wanted = {tuple(Template(chat_tokenizer).question_ids(row.question)) for row in rows}
    assert pieces(chat_tokenizer, list(min(wanted))) == ["<bos>", "<q>", "What", *TYPED, " is", " it", " ", "0", "?", "<a>"]
    seen: list[tuple[int, ...]] = []

    def note(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].shape[1] > 5:  # neither a probe of the head nor one token more
            seen.extend(map(tuple, kwargs["input_ids"].tolist()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    config = UnlearnConfig(str(tmp_path), use_cpu=True, report_to="none")
    UnlearnTrainer(model, config, METHODS["eua"](), rows, rows, processing_class=chat_tokenizer)
    length = len(min(wanted))
    assert {ids[:length] for ids in seen} == wanted

    seen.clear()
    EnergyGate.calibrate(model, chat_tokenizer, rows, rows, max_false_refusal=0.5, max_new_tokens=2)
    assert set(seen) > wanted  # the others are the gate's probes

    seen.clear()
    GuardedModel(model, chat_tokenizer, None).answer([row.question for row in rows], max_new_tokens=2)
    assert set(seen) == wanted


def test_tokens_count_what_is_predicted() -> None:
    assert Tokens("t", (5, 6, 7), (True, True, False)).answer_length == 1
    assert Tokens("t", (), ()).answer_length == 0
    assert Message("user", "x").role == "user"
