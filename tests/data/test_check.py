"""What `data check` finds: counts, equal rows, questions that both sides ask, the answer marked."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from d2unlearn.data.check import DataSummary, inspect, marked, shared_questions
from d2unlearn.data.records import example_of
from d2unlearn.data.template import Template
from d2unlearn.schema import Example, Tokens


def qa(line: int, question: str, answer: str, group: str | None = None) -> Example:
    return example_of({"question": question, "answer": answer, "group": group}, f"rows.jsonl:{line}")


ROWS = [
    qa(1, "What is it?", "Paris", "a"),
    qa(2, "What is he?", "Berlin", "a"),
    qa(3, "What is it?", "Paris", "b"),
    example_of({"text": "it was born in a city"}, "rows.jsonl:4"),
    qa(5, "What is it?", "Paris"),
    qa(6, "What is it?", "Berlin"),
]


def test_rows_groups_prompts_and_equal_rows_are_counted() -> None:
    duplicates = (("rows.jsonl:1", "rows.jsonl:3"), ("rows.jsonl:1", "rows.jsonl:5"))
    assert inspect(ROWS, None) == DataSummary(6, 2, 5, duplicates, None, None)
    assert inspect(ROWS[1:2], None).duplicates == ()


def test_tokens_are_counted_as_they_are_rendered(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    """<bos><q>What is it?<a>Paris<eos>: 9 tokens, 2 of them answer; the text: 6 words and <eos> after <bos>."""
    found = inspect([ROWS[0], ROWS[3]], Template(chat_tokenizer))
    assert (found.longest, found.answer_tokens) == (9, 2 + 7)


def test_overlap_is_the_same_question_whatever_its_case_and_spacing() -> None:
    forget = [qa(1, " WHAT is\tit? ", "Paris"), qa(2, "What is she?", "it"), qa(3, "Straße?", "it")]
    retain = [qa(7, "Who?", "Paris"), qa(8, "what is it?", "Berlin"), qa(9, "STRASSE?", "she")]
    assert shared_questions(forget, retain) == [("rows.jsonl:1", "rows.jsonl:8"), ("rows.jsonl:3", "rows.jsonl:9")]
    assert shared_questions(retain, forget) == [("rows.jsonl:8", "rows.jsonl:1"), ("rows.jsonl:9", "rows.jsonl:3")]
    assert shared_questions([], retain) == []


def test_plain_texts_overlap_by_their_text() -> None:
    forget = [example_of({"text": "It was Paris."}, "f:1"), example_of({"text": "It was Berlin."}, "f:2")]
    assert shared_questions(forget, [example_of({"text": "it  was paris."}, "r:1")]) == [("f:1", "r:1")]


def test_the_answer_is_marked_in_the_rendered_row(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(chat_tokenizer)
    assert marked(template.tokens(ROWS[0]), template) == "<bos><q>What is it?<a>⟦Paris<eos>⟧"
    assert marked(template.tokens(ROWS[3]), template) == "<bos>⟦it was born in a city<eos>⟧"
    assert marked(Tokens("cut", (1, 3), (False, False)), template) == "<bos><q>⟦⟧"
