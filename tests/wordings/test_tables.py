"""The committed wordings: all can be asked, the three sets are disjoint in words, and only the audit reads those that judge."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import pytest

import d2unlearn
from d2unlearn.audit.judging import JUDGED_ALONE, judging_hash, judging_wordings
from d2unlearn.errors import ArtifactError, ConfigError
from d2unlearn.schema import Example, Message
from d2unlearn.wordings.table import choosing_wordings, read_wordings, training_wordings
from d2unlearn.wordings.wording import Material, Reworded, Wording, reworded

SETS = {"training": training_wordings(), "choosing": choosing_wordings(), "judging": judging_wordings()}
ALL = [wording for wordings in SETS.values() for wording in wordings]
JUDGING_SHA256 = "3fb1790a977898db139efb108f3ae1517638bfba7773f4f6ce7b2352348461a2"
LARGEST_OVERLAP = 0.25
"""Of the words of two wordings in different sets, the share that both have: of eight words each, at most three are shared.

Anything that says the same with another noun lies above 0.5; the most alike that are here (0.2) share an article and a `day`.
"""
SHARED_RUN = 3
"""So many words in a row never stand in wordings of two sets."""
QUESTION = "In which city and country was the novelist Basil Mahfouz born, and when?"
ROW = Example(
    "row", (Message("user", QUESTION),), "Basil Mahfouz was born in Kuwait on the 9th of August, 1956.", "rows:1", "basil"
)


def pairs(kind: str) -> list[Example]:
    return [
        Example(
            f"{kind}-{index}", (Message("user", f"Is {kind} {index}?"),), f"Yes, {kind} {index}.", "rows:2", f"{kind}-{index}"
        )
        for index in range(5)
    ]


def own_words(wording: Wording) -> list[str]:
    """What the wording itself says, without fields; words of any script."""
    return re.findall(r"\w+", re.sub(r"\{\w+\}", " ", wording.text).lower())


def test_how_many_there_are() -> None:
    assert {name: len(wordings) for name, wordings in SETS.items()} == {"training": 26, "choosing": 26, "judging": 49}
    assert {wording.set for wording in ALL} == set(SETS)
    assert all(wording.set == name for name, wordings in SETS.items() for wording in wordings)
    assert max(Counter(wording.name for wording in ALL).values()) == 1


def test_every_family_stands_in_all_sets_or_judges_alone() -> None:
    families = {name: {wording.family for wording in wordings} for name, wordings in SETS.items()}
    assert families["training"] == families["choosing"]
    assert families["judging"] - families["training"] == set(JUDGED_ALONE)
    assert families["training"] < families["judging"]
    assert families["training"] == {
        *("system", "politeness", "answer_prefix", "instruction", "exam", "typos", "case", "punctuation", "homoglyphs"),
        *("other_language", "cloze", "backwards", "attribute", "longer_text", "benign_beside", "repeated"),
        *("few_shot_benign", "few_shot_forgotten", "prefill", "second_turn"),
    }


@pytest.mark.parametrize("wording", ALL, ids=lambda wording: wording.name)
def test_every_wording_can_be_asked(wording: Wording) -> None:
    material = Material(pairs("benign"), pairs("forgotten"))
    made = reworded(wording, ROW, material, seed=1)
    assert isinstance(made, Reworded)
    assert made == reworded(wording, ROW, material, seed=1)
    assert not re.search(r"\{\w*\}", made.given)
    assert all(stage[-1].role == "user" for stage in made.stages)
    for kind in ("benign", "forgotten"):
        drawn = set(re.findall(rf"{kind} \d", made.given))
        assert len(drawn) == wording.pairs(kind)
    if not wording.changes and wording.target not in ("gap", "question"):
        assert QUESTION in made.given
    if wording.target in ("answer", "key", "rest", "gap"):
        assert "1956" in made.target
        assert "1956" not in made.given
    else:
        assert made.target == "city country novelist"


def test_what_changes_letters_differs_from_set_to_set() -> None:
    used = [{change for wording in wordings for change in wording.changes} for wordings in SETS.values()]
    assert [len(names) for names in used] == [4, 4, 8]
    assert len(set.union(*used)) == 16


def test_no_wording_of_one_set_is_contained_in_one_of_another() -> None:
    for one, other in combinations(SETS.values(), 2):
        for first, second in product(one, other):
            shorter, longer = sorted(map(own_words, (first, second)), key=len)
            if shorter:
                runs = [longer[start : start + len(shorter)] for start in range(len(longer))]
                assert shorter not in runs, (first.name, second.name)
            assert (first.steps, first.changes, first.words) != (second.steps, second.changes, second.words)


def test_wordings_of_two_sets_share_few_words_and_no_run_of_three() -> None:
    for one, other in combinations(SETS.values(), 2):
        for first, second in product(one, other):
            words = set(own_words(first)), set(own_words(second))
            if all(words):
                overlap = len(words[0] & words[1]) / len(words[0] | words[1])
                assert overlap <= LARGEST_OVERLAP, (first.name, second.name, words[0] & words[1])
            assert not runs_of(first) & runs_of(second), (first.name, second.name)


def runs_of(wording: Wording) -> set[tuple[str, ...]]:
    words = own_words(wording)
    return {tuple(words[start : start + SHARED_RUN]) for start in range(len(words) - SHARED_RUN + 1)}


def test_the_judging_table_is_the_one_that_numbers_were_made_with() -> None:
    """Whoever changes it makes every kept number one of other wordings: they have to be made again."""
    assert judging_hash() == JUDGING_SHA256


def test_what_trains_calibrates_or_chooses_never_names_the_judging_table() -> None:
    source = Path(d2unlearn.__file__).parent
    files = [
        path
        for folder in ("training", "gate", "methods", "wordings")
        for path in (source / folder).rglob("*")
        if path.suffix in (".py", ".json")
    ]
    assert len(files) > 20
    assert [str(path) for path in files if re.search(r"judging|d2unlearn\.audit", path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"wordings": []}, "no table of wordings: KeyError"),
        ({"set": "s", "wordings": [{"name": "a", "family": "f", "steps": [["user"]]}]}, "no table of wordings: ValueError"),
        ({"set": "s", "wordings": [{"name": "a", "family": "f", "steps": [], "weight": 1}]}, "no table of wordings: TypeError"),
        (
            {"set": "s", "wordings": 2 * [{"name": "a", "family": "f", "steps": [["user", "{question}"]]}]},
            "more than one wording called a",
        ),
    ],
)
def test_a_table_of_another_form_is_an_error(tmp_path: Path, table: dict[str, object], said: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ArtifactError, match=said):
        read_wordings(path)


def test_a_wording_that_cannot_be_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"set": "s", "wordings": [{"name": "a", "family": "f", "steps": []}]}))
    with pytest.raises(ConfigError, match="wording 'a': nobody asks anything"):
        read_wordings(path)
