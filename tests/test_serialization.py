"""The evaluation's file: what goes in comes out, and what is not one is refused in one sentence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from d2unlearn.errors import DataError
from d2unlearn.serialization import (
    evaluation_from_json,
    evaluation_to_json,
    read_evaluation,
    record_from_json,
    record_to_json,
    write_evaluation,
)
from report.synthetic import evaluated, evaluation, example, metric, synthetic


def test_a_whole_evaluation_survives_its_file(tmp_path: Path) -> None:
    after = synthetic(after=True)
    path = tmp_path / "evaluation.json"
    write_evaluation(path, after)
    back = read_evaluation(path)
    # repr tells floats apart to the last bit and shows NaN as nan, which == does not
    assert repr(back) == repr(after)
    assert math.isnan(back.sets[0].examples[3].scores["token_entropy"])


def test_nan_is_null_and_absent_is_null_where_the_field_allows_it() -> None:
    one = evaluation(evaluated("f", "forget", metric("x", math.nan), examples=(example(energy=math.nan),)))
    stored = evaluation_to_json(one)
    assert stored["sets"][0]["metrics"][0]["value"] is None
    assert stored["sets"][0]["examples"][0]["prompt_energy"] is None
    assert stored["sets"][0]["examples"][0]["gate_score"] is None
    back = evaluation_from_json(stored)
    assert math.isnan(back.sets[0].examples[0].prompt_energy)
    assert back.sets[0].examples[0].gate_score is None
    assert back.threshold is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, -1.5, 1e-300])
def test_an_optional_number_keeps_what_it_is(value: float | None) -> None:
    text = json.dumps(evaluation_to_json(replace(evaluation(), threshold=value)), allow_nan=False)
    assert repr(evaluation_from_json(json.loads(text)).threshold) == repr(value)


def test_infinite_numbers_survive() -> None:
    one = evaluation(evaluated("f", "forget", metric("x", 1.0, low=-math.inf, high=math.inf)))
    text = json.dumps(evaluation_to_json(one), allow_nan=False)
    assert evaluation_from_json(json.loads(text)) == one


def test_settings_keep_their_shape() -> None:
    settings = {"a": [1, 2.5, None], "b": {"c": True, "d": "x"}, "nan": math.nan}
    back = evaluation_from_json(evaluation_to_json(replace(evaluation(), settings=settings)))
    assert back.settings == {"a": [1, 2.5, None], "b": {"c": True, "d": "x"}, "nan": None}


def test_settings_that_json_cannot_hold_are_named() -> None:
    with pytest.raises(DataError, match=r"evaluation\.settings\.when holds a complex"):
        evaluation_to_json(replace(evaluation(), settings={"when": 1j}))


def _with(change: str) -> object:
    stored = evaluation_to_json(evaluation(evaluated("f", "forget", metric("m", 0.5), examples=(example(),))))
    first, scored = stored["sets"][0], stored["sets"][0]["examples"][0]
    changes = {
        "kind": lambda: first.update(kind="both"),
        "number": lambda: first["metrics"][0].update(value="high"),
        "flag": lambda: first["metrics"][0].update(n=True),
        "text": lambda: scored.update(question=3),
        "lacks": lambda: scored.pop("answer"),
        "unknown": lambda: scored.update(colour="red"),
        "list": lambda: stored.update(sets={}),
        "object": lambda: scored.update(scores=[]),
        "version": lambda: stored.update(version=2),
    }
    changes[change]()
    return stored


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("kind", r"evaluation\.sets\[0\]\.kind should be one of forget, retain, not 'both'"),
        ("number", r"evaluation\.sets\[0\]\.metrics\[0\]\.value should be a number, not 'high'"),
        ("flag", r"metrics\[0\]\.n should be int, not True"),
        ("text", r"examples\[0\]\.question should be str, not 3"),
        ("lacks", r"examples\[0\] lacks answer"),
        ("unknown", r"examples\[0\] has unknown colour"),
        ("list", r"evaluation\.sets should be a list, not dict"),
        ("object", r"scores should be an object, not list"),
        ("version", r"version 2, this program reads version 1"),
    ],
)
def test_a_misfit_is_named_with_the_file_and_the_field(change: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        evaluation_from_json(_with(change), "some.json")
    assert str(caught.value).startswith("some.json is ")
    assert "d2unlearn evaluate" in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"sets": [', '{"version": 1}', "\udcff"])
def test_a_file_that_is_not_an_evaluation_ends_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="d2unlearn evaluate") as caught:
        read_evaluation(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_evaluation(path)


@dataclass(frozen=True)
class _Chosen:
    """A record with a choice that may be absent."""

    choice: Literal["one", "other"] | None


@pytest.mark.parametrize("choice", ["one", None])
def test_a_choice_that_may_be_absent_comes_back(choice: Literal["one", "other"] | None) -> None:
    stored = record_to_json(_Chosen(choice), "record")
    assert record_from_json(_Chosen, stored, "some.json", "a record", "make it again") == _Chosen(choice)
    with pytest.raises(DataError, match=r"record\.choice should be one of one, other, not 'third'"):
        record_from_json(_Chosen, {"choice": "third"}, "some.json", "a record", "make it again")
