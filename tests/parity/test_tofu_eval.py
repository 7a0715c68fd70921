"""open-unlearning's own output for two real models, and ours: the same keys, and every number of every example."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from d2unlearn.cli.main import app

MODELS = ("tofu-4m-retain90", pytest.param("tofu-4m-full", marks=pytest.mark.slow))
RANKED = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm")
ROWS = 40
SWAPPED = 2 / ROWS**2
"""What two swapped pairs of forgotten and held-out examples change in an AUC."""
STANDARDISED = 2e-5
"""Of a Min-K%++ score, relative to it. They reach 500: where a model is sure, log p is divided by a deviation near 0.01, whose
relative error is half of the absolute one of the float32 logits, some 1e-5 at logits near 20, however it is computed from them:
held against float64 throughout, the reference's own scores are off by up to 3.5e-6, ours by up to 5.4e-6.
"""


@pytest.fixture(scope="module")
def evaluated(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model's output, by the command line, once; the second has the first's golden file as its retain model's logs."""
    golden = shared / "parity" / "eval"
    if not golden.is_dir():
        pytest.skip(f"needs the reference's output, and {golden} is not there")
    folder = tmp_path_factory.mktemp("tofu")

    @cache
    def evaluate(name: str) -> Path:
        given = ["evaluate", "--model", str(shared / "models" / name), "--benchmark", "tofu", "--forget-split", "forget10"]
        given += ["--data", str(golden / "data"), "--convention", "open-unlearning", "--output", str(folder / name)]
        if name == "tofu-4m-full":
            given += ["--retain-logs", str(golden / "tofu-4m-retain90" / "TOFU_EVAL.json")]
        run = CliRunner().invoke(app, given)
        assert run.exit_code == 0, run.output
        return folder / name

    return evaluate


def numbers(entry: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of everything in a file, in order."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            yield from numbers(value, f"{place}/{key}")
    elif isinstance(entry, list):
        for index, value in enumerate(entry):
            yield from numbers(value, f"{place}/{index}")
    else:
        yield place, entry


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file", ["TOFU_EVAL.json", "TOFU_SUMMARY.json"])
def test_every_key_aggregate_and_example_agrees(evaluated: Callable[[str], Path], shared: Path, name: str, file: str) -> None:
    ours = json.loads((evaluated(name) / file).read_text())
    theirs = json.loads((shared / "parity" / "eval" / name / file).read_text())
    assert list(ours) == list(theirs)
    found, expected = dict(numbers(ours)), dict(numbers(theirs))
    assert set(found) == set(expected)
    for place, value in expected.items():
        key, last = place.split("/")[1], place.split("/")[-1]
        if not isinstance(value, float | int) or isinstance(value, bool):
            assert found[place] == value, place  # texts, and null
            continue
        ranked = key in RANKED and last in ("auc", "agg_value", key) and place.count("/") <= 2
        allowed = SWAPPED if ranked else 100 * SWAPPED / 0.5 if key == "privleak" else 1e-4
        relative = STANDARDISED if key == "mia_min_k_plus_plus" and last == "score" else 0.0
        assert math.isclose(found[place], value, rel_tol=relative, abs_tol=allowed), (place, found[place], value)


@pytest.mark.slow
def test_forget_quality_agrees_to_two_swapped_pairs(evaluated: Callable[[str], Path], shared: Path) -> None:
    ours = json.loads((evaluated("tofu-4m-full") / "TOFU_SUMMARY.json").read_text())["forget_quality"]
    theirs = json.loads((shared / "parity" / "eval" / "tofu-4m-full" / "TOFU_SUMMARY.json").read_text())["forget_quality"]
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours < 0.05  # the full model is told apart from the retain model


def test_the_same_models_in_our_convention_differ_where_it_is_documented(
    evaluated: Callable[[str], Path], shared: Path, tmp_path: Path
) -> None:
    """The dropped token changes extraction strength; what a model gives to its answers does not change."""
    name = "tofu-4m-retain90"
    given = ["evaluate", "--model", str(shared / "models" / name), "--benchmark", "tofu", "--no-gradient-norm"]
    given += ["--data", str(shared / "parity" / "eval" / "data"), "--output", str(tmp_path / "o")]
    assert CliRunner().invoke(app, given).exit_code == 0
    ours = json.loads((tmp_path / "o" / "TOFU_EVAL.json").read_text())
    theirs = json.loads((evaluated(name) / "TOFU_EVAL.json").read_text())
    assert ours["forget_Q_A_Prob"]["agg_value"] == pytest.approx(theirs["forget_Q_A_Prob"]["agg_value"], abs=1e-6)
    assert ours["model_utility"]["agg_value"] == pytest.approx(theirs["model_utility"]["agg_value"], abs=1e-5)
    strength = [each["extraction_strength"]["agg_value"] for each in (ours, theirs)]
    assert strength[0] > strength[1] + 0.005  # the end token, which ours counts, is what the model knows best of these answers
    assert ours["privleak"]["agg_value"] is None  # no logs were given, so there is nothing to compare with
    assert theirs["privleak"]["agg_value"] == pytest.approx(100.0, abs=1e-3)
