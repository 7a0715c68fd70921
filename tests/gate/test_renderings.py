"""How rows are asked at calibration: drawn by the row, in every group, with what was answered before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.gate.groups import REQUEST_GROUPS
from d2unlearn.gate.renderings import Rendering, fitting, renderings
from d2unlearn.schema import Example, Message
from d2unlearn.wordings.table import training_wordings
from d2unlearn.wordings.wording import Material

from . import tiny

ROWS = [
    Example(
        f"{i}", (Message("user", f"Where does number {i} live?"),), f"Number {i} lives in house {i} of Mill Lane.", f"f:{i}"
    )
    for i in range(40)
]
MATERIAL = Material(ROWS[:10], ROWS[10:20])


def test_each_row_is_asked_as_it_stands_and_once_in_every_group() -> None:
    made = renderings(ROWS, training_wordings(), MATERIAL, seed=3)
    assert [each.question for each in made if each.family == "plain"] == list(range(40))
    groups = Counter((each.question, each.group) for each in made if each.family != "plain")
    assert set(groups) == {(question, group) for question in range(40) for group in REQUEST_GROUPS}
    assert set(groups.values()) == {1}
    assert len({each.family for each in made}) > 12  # all rows together see most families
    assert renderings(ROWS[5:6], training_wordings(), MATERIAL, seed=3, first=5) == [e for e in made if e.question == 5]


def test_legitimate_rows_are_never_asked_among_forgotten_ones_and_forgotten_ones_were_refused_before() -> None:
    legitimate = renderings(ROWS, training_wordings(), MATERIAL, of_each=9)
    assert "few_shot_forgotten" not in {each.family for each in legitimate}
    again = [each for each in legitimate if each.family == "second_turn"]
    assert {each.messages[1].content for each in again} == {row.answer for row in ROWS}
    forgotten = renderings(ROWS, training_wordings(), MATERIAL, of_each=9, refusal="No.")
    assert "few_shot_forgotten" in {each.family for each in forgotten}
    assert {each.messages[1].content for each in forgotten if each.family == "second_turn"} == {"No."}


def test_rows_without_an_answer_are_asked_only_as_far_as_that_goes() -> None:
    bare = [replace(row, answer="") for row in ROWS[:5]]
    made = renderings(bare, training_wordings(), MATERIAL, of_each=9)
    assert {each.target for each in made} == {""}
    assert {"cloze", "prefill", "second_turn"}.isdisjoint({each.family for each in made})


def test_rows_of_a_file_of_their_own_stay_as_they_are() -> None:
    made = renderings(ROWS[:2], training_wordings(), MATERIAL, first=7, group="near")
    assert [(each.question, each.group, each.family) for each in made] == [(7, "near", "plain"), (8, "near", "plain")]


def test_the_beginning_of_an_answer_stands_behind_the_prompt_without_an_end(tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(tokenizer)
    asked = (Message("user", "w1 w2"),)
    begun = Rendering(0, "prefill", "wrapped", asked, "w3 w4 ", "w5")
    assert begun.prompt_ids(template) == [*template.prompt_ids(asked), *template.text_ids("w3 w4")]
    assert [turn[0].content for turn in begun.turns] == ["w1 w2"]
    assert replace(begun, beginning="").turns == []


def test_a_wording_that_leaves_no_room_is_left_out_and_a_row_as_it_stands_is_not(tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(tokenizer)
    plain = renderings(tiny.examples(1, 1))[0]
    long = replace(plain, family="longer_text", messages=(Message("user", "w1 " * 50),))
    assert [each for each, _ in fitting([plain, long], template, 20)] == [plain]
    assert [each for each, _ in fitting([plain, long], template, None)] == [plain, long]
    untaken = replace(plain, messages=(Message("tool", "w1"),))
    assert fitting([replace(untaken, family="system")], template, None) == []
    with pytest.raises(DataError, match="role"):
        fitting([untaken], template, None)
