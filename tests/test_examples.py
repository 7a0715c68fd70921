"""The files in `examples/` as a reader runs them, from the first line to the last, on a tiny model."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from d2unlearn.schema import GATE_FILE, MANIFEST_FILE
from methods.tiny_run import fitting

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
KEPT = [f"was {name} born in {place}" for name in ("France", "Germany", "it", "he", "she") for place in ("Paris", "Berlin")]
pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: PreTrainedTokenizerFast) -> tuple[str, str, str]:
    """A model folder, three rows to forget, a hundred to keep: of those a half is held out, enough for a gate of 5%."""
    folder = tmp_path_factory.mktemp("data")
    fitting(chat_tokenizer).save_pretrained(folder / "model")
    chat_tokenizer.save_pretrained(folder / "model")
    rows = {
        "forget": [(f"What is the capital of {name}", f"it is {name} in Berlin") for name in ("he", "she", "it")],
        "retain": [(f"{asked} {'it ' * n}", f"{asked.split()[1]} was") for asked in KEPT for n in range(10)],
    }
    for name, pairs in rows.items():
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "model"), str(folder / "forget.jsonl"), str(folder / "retain.jsonl")


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_there_are_no_other_examples() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "forget_and_report.py",
        "probability_ceiling.py",
        "word_guard.py",
    }


def test_forget_and_report(
    data: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("forget_and_report.py", *data, str(tmp_path), monkeypatch=monkeypatch)
    printed = capsys.readouterr().out.splitlines()
    line = r"forget answer probability \d\.\d+ \[\d\.\d+, \d\.\d+\], n = 3, retain answer probability .* n = 100$"
    assert re.match(f"before: {line}", printed[0])
    assert re.match(f"after: {line}", printed[1])
    assert printed[2] == str((tmp_path / "report.html").resolve())
    assert [text.partition(":")[0] in ("refused", "answered") for text in printed[3:]] == [True] * 3
    assert json.loads((tmp_path / "artifact" / GATE_FILE).read_text())["max_false_refusal"] == 0.05


def test_word_guard(data: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Forget questions alone have the words "what" and "capital"; every word of a retained one stands in others of them."""
    run("word_guard.py", *data, monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "forget: 3 of 3 refused\nretained, not fitted on: 0 of 25 refused\n"


def test_a_method_of_another_distribution_is_trained_and_named_in_the_manifest(
    data: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from d2unlearn.commands import UnlearnSettings, unlearn

    info = tmp_path / "site" / "d2_ceiling-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: d2-ceiling\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[d2unlearn.methods]\nceiling = probability_ceiling:ProbabilityCeiling\n")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    given = {"method": "ceiling", "method_parameters": {"ceiling": 0.05}, "epochs": 1.0, "keep": "last"}
    artifact = unlearn(UnlearnSettings(*data, output=str(tmp_path / "artifact"), **given))  # type: ignore[arg-type]
    manifest = json.loads((artifact / MANIFEST_FILE).read_text())
    assert manifest["method"] == {"name": "ceiling", "ceiling": 0.05, "alpha": 1.0}
    assert manifest["plugins"] == {"d2-ceiling": "0.3"}
