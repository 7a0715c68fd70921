"""TOFU's splits: from a folder or by name, twenty questions an author, paraphrases as questions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from d2unlearn.data.tofu import paraphrased, read_tofu
from d2unlearn.errors import DataError
from d2unlearn.schema import Message


def lines(n: int) -> list[dict[str, Any]]:
    return [{"question": f"Q{i}?", "answer": f"A{i}.", "paraphrased_question": f"Again, Q{i}?"} for i in range(n)]


def write(path: Path, n: int) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines(n)), encoding="utf-8")


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_split_is_read_from_a_folder_with_authors_as_groups(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"forget01.{suffix}", 40)
    rows = read_tofu("forget01", tmp_path)
    assert [row.group for row in rows] == ["block-0"] * 20 + ["block-1"] * 20
    assert rows[20].source == f"forget01.{suffix}:21"


def test_real_authors_and_world_facts_have_no_authors_as_groups(tmp_path: Path) -> None:
    for split in ("real_authors_perturbed", "world_facts_perturbed"):
        write(tmp_path / f"{split}.jsonl", 3)
        assert [row.group for row in read_tofu(split, tmp_path)] == [None] * 3


def test_a_split_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no forget10\.jsonl; splits there: none"):
        read_tofu("forget10", tmp_path)
    write(tmp_path / "forget01.jsonl", 1)
    write(tmp_path / "retain99.json", 1)
    with pytest.raises(DataError, match=r"has no forget10\.jsonl; splits there: forget01, retain99"):
        read_tofu("forget10", tmp_path)


def test_without_a_folder_the_split_is_a_configuration_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, config: str | None = None, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(lines(21))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_tofu("forget10")
    assert asked == [("locuslab/TOFU", "forget10", "train")]
    assert Counter(row.group for row in rows) == {"block-0": 20, "block-1": 1}


def test_paraphrased_rows_ask_in_other_words_for_the_same_answer(tmp_path: Path) -> None:
    write(tmp_path / "forget01.jsonl", 3)
    rows = read_tofu("forget01", tmp_path)
    changed = paraphrased(rows)
    assert [row.prompt for row in changed] == [(Message("user", f"Again, Q{i}?"),) for i in range(3)]
    assert [(r.answer, r.group, r.source) for r in changed] == [(r.answer, r.group, r.source) for r in rows]
    (tmp_path / "plain.jsonl").write_text('{"question": "Q", "answer": "A"}\n')
    with pytest.raises(DataError, match=r"plain\.jsonl:1: has no paraphrased_question"):
        paraphrased(read_tofu("plain", tmp_path))


def test_the_real_splits_have_the_published_sizes(shared: Path) -> None:
    folder = shared / "data" / "tofu"
    sizes = {split: len(read_tofu(split, folder)) for split in ("forget01", "forget05", "forget10", "retain90")}
    assert sizes == {"forget01": 40, "forget05": 200, "forget10": 400, "retain90": 3600}
    perturbed = read_tofu("forget10_perturbed", folder)
    assert set(Counter(row.group for row in perturbed).values()) == {20}
    assert [row.answer for row in paraphrased(perturbed)] == [row.answer for row in perturbed]
    assert [row.question for row in perturbed] == [row.question for row in read_tofu("forget10", folder)]
