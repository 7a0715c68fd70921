"""Files of an earlier commit still say what they said: an artifact, two evaluations, a comparison."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from . import walk
from .walk import COMPARE, DATA, differing, evaluate, json_of, lines_of, well

pytestmark = pytest.mark.filterwarnings("ignore:.*is of an earlier version and does not bind:UserWarning")

RECORDED: dict[str, Any] = json_of(DATA / "old_files.json")
MADE_BY = json_of(DATA / "artifact" / "d2_manifest.json")["versions"]["d2unlearn"]


@pytest.fixture
def old_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package says that it is the version that made the files: another one does its work anew."""
    for name in ("d2unlearn.evaluation.runner", "d2unlearn.training.unlearn"):
        importlib.import_module(name)  # all that asks for the version, before it is another one
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "d2unlearn"]:
        if hasattr(module, "__version__"):
            monkeypatch.setattr(module, "__version__", MADE_BY)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes, and when it was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# -- the artifact ---------------------------------------------------------------------------------------------------------


def test_the_old_gate_says_of_itself_what_it_said(old: Path) -> None:
    assert walk.gate() == RECORDED["gate"]


def test_the_old_artifact_answers_as_it_did(old: Path) -> None:
    before = contents(old / "artifact")
    assert differing(walk.answered(), RECORDED["answered"], rel=1e-4) == []
    assert contents(old / "artifact") == before


def test_the_command_answers_as_it_did(old: Path) -> None:
    found = [{name: value for name, value in row.items() if name != "score"} for row in walk.generated()]
    assert differing(found, RECORDED["generated"], rel=1e-4) == []
    for row in (RECORDED["generated"][0], RECORDED["generated"][-1]):
        assert well("generate", "--model", "artifact", "--prompt", row["prompt"]).out == f"{row['text']}\n"


def test_some_of_the_questions_are_refused_and_others_are_not() -> None:
    refused = [row["refused"] for row in RECORDED["answered"]]
    assert (refused.count(True), refused.count(False)) == (6, 6)
    assert {row["text"] for row in RECORDED["answered"] if row["refused"]} == {"he was"}


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The code that a model brings is kept in a folder of this test, and Python forgets afterwards that it was imported."""

    def imported() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in imported():
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in imported():
        del sys.modules[name]


def test_the_code_that_the_old_artifact_carries_answers_as_it_did(old: Path, own_modules: None) -> None:
    """Through transformers alone."""
    model = AutoModelForCausalLM.from_pretrained("./artifact", trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained("./artifact")
    texts = []
    for row in lines_of("questions.jsonl"):
        turns = [{"role": "user", "content": row["prompt"]}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            answer = model.generate(**asked, max_new_tokens=6, do_sample=False)
        texts.append(tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert texts == [row["text"] for row in RECORDED["answered"]]


def test_unlearn_finds_the_old_artifact_done(old: Path, old_version: None) -> None:
    before = contents(old / "artifact")
    assert "artifact is done: same inputs, same settings" in well(*walk.UNLEARN).err
    assert contents(old / "artifact") == before


LATER = ("exact_memorization_without_end", "mean_logit", "centred_energy", "entropy")
"""What later versions measure beside."""


def as_recorded(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Without what later versions measure and are asked for beside."""
    assert evaluation["settings"].pop("original") is None
    assert evaluation["settings"].pop("columns") == {}
    assert evaluation["settings"].pop("redact") is False
    for each in without_later(evaluation["sets"]):
        for example in each["examples"]:
            example["scores"] = {name: value for name, value in example["scores"].items() if name not in LATER}
    return evaluation


def without_later(sets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sets of results, in place, without the later metrics."""
    for each in sets:
        each["metrics"] = [metric for metric in each["metrics"] if metric["name"] not in LATER]
    return sets


# -- the evaluations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["before", "after"])
def test_evaluate_finds_the_old_evaluation_done(old: Path, old_version: None, side: str) -> None:
    before = contents(old / "evaluation")
    assert f"evaluation/{side} is done: same inputs, same settings" in well(*evaluate(side, f"evaluation/{side}")).err
    assert contents(old / "evaluation") == before


@pytest.mark.parametrize("side", ["before", "after"])
def test_evaluated_again_the_same_comes_out(old: Path, side: str) -> None:
    well(*evaluate(side, "again"))
    found, expected = as_recorded(json_of("again/evaluation.json")), json_of(f"evaluation/{side}/evaluation.json")
    assert found["settings"].pop("output") == "again"
    assert expected["settings"].pop("output") == f"evaluation/{side}"
    assert differing(found, expected, rel=1e-4) == []


def test_the_old_evaluations_are_drawn_with_the_same_numbers(old: Path) -> None:
    shown = walk.reported()
    assert shown == RECORDED["report"]
    for side in ("before", "after"):
        for each in json_of(f"evaluation/{side}/evaluation.json")["sets"]:
            (strength,) = (metric["value"] for metric in each["metrics"] if metric["name"] == "extraction_strength")
            assert any(f"{strength:.3f}" in cell for cell in shown), (side, each["name"])


# -- the comparison -------------------------------------------------------------------------------------------------------


def test_the_old_comparison_is_done_and_nothing_is_run_again(old: Path) -> None:
    folder = old / "comparison"
    kept = {name: contents(folder / name) for name in ("results", "answers")}
    planned = well(*COMPARE, "--plan").out.splitlines()
    assert [line.split() for line in planned] == [
        ["done", f"cities/{name}/{part}"]
        for name, parts in {
            "original": ["seed-0"],
            "oracle": ["seed-0"],
            "eua": ["tune", "seed-0"],
            "gradient_difference": ["tune", "seed-0"],
            "input_classifier": ["tune", "seed-0"],
        }.items()
        for part in parts
    ]
    assert well(*COMPARE).err == ""
    assert {name: contents(folder / name) for name in kept} == kept


def test_the_old_comparison_s_tables_come_out_as_they_were(old: Path) -> None:
    folder = old / "comparison"
    markdown, numbers = (folder / "table.md").read_text(encoding="utf-8"), json_of(folder / "table.json")
    for name in ("table.md", "table.json"):
        (folder / name).unlink()
    well(*COMPARE)
    assert (folder / "table.md").read_text(encoding="utf-8") == markdown
    assert differing(json_of(folder / "table.json"), numbers, rel=1e-9) == []


def test_the_old_comparison_s_pages_hold_the_same_numbers(old: Path) -> None:
    assert walk.compared() == RECORDED["pages"]


def test_a_result_that_is_missing_is_the_only_one_done_again(old: Path) -> None:
    """The guard's judgement, which takes no training: the same record comes out, but for time and machine."""
    path = old / "comparison" / "results" / "cities" / "input_classifier" / "seed-0.json"
    before = json_of(path)
    path.unlink()
    shutil.rmtree(old / "comparison" / "answers" / "cities" / "input_classifier")
    said = well(*COMPARE).err
    assert [line.split()[0] for line in said.splitlines() if line.endswith(" begins")] == ["cities/input_classifier/seed-0"]
    after = json_of(path)
    without_later(after["sets"])
    assert after.pop("reworded") == []  # came later
    elsewhere = ("cost", "machine", "versions")
    after, before = ({key: value for key, value in each.items() if key not in elsewhere} for each in (after, before))
    assert differing(after, before, rel=1e-4) == []
