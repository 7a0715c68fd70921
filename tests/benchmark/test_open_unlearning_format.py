"""open-unlearning's files: what is written can be read there and back here, and what is no such file is said in a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2unlearn.benchmark.conventions import OPEN_UNLEARNING, OURS
from d2unlearn.benchmark.metrics import ForgetQuality, MetricInputs, MetricValue, PrivLeak, SetValues, mean_of_columns
from d2unlearn.benchmark.open_unlearning import (
    eval_entries,
    logged_convention,
    read_logs,
    summary_entries,
    write_entries,
)
from d2unlearn.benchmark.suites import MUSE, TOFU
from d2unlearn.errors import DataError


def found() -> dict[str, MetricValue]:
    """One finding of each form: records, several answers, an attack, a bare number, none."""

    def column(*values: float) -> tuple[SetValues, ...]:
        return (SetValues("forget", np.array(values)),)

    side = MetricValue(column(1.0, 2.0), mean_of_columns, records=({"score": 1.0}, {"score": 2.0}))
    return {
        "forget_Q_A_Prob": MetricValue(
            column(0.5, math.nan), mean_of_columns, records=({"prob": 0.5}, {"prob": math.nan, "avg_loss": math.nan})
        ),
        "forget_Q_A_PERT_Prob": MetricValue(
            column(0.5), mean_of_columns, records=({"prob": [0.4, 0.6], "avg_loss": [0.9, math.nan]},)
        ),
        "mia_min_k": MetricValue((*column(1.0), *column(2.0)), lambda _: 0.75, parts={"forget": side, "holdout": side}),
        "forget_quality": MetricValue(reason="needs the retain model's logs"),
        "model_utility": MetricValue(column(0.25), mean_of_columns),
    }


def test_each_form_of_entry_is_theirs() -> None:
    entries = eval_entries(TOFU, found(), OPEN_UNLEARNING)
    side = {"agg_value": 1.5, "value_by_index": {"0": {"score": 1.0}, "1": {"score": 2.0}}}
    assert entries == {
        "forget_Q_A_PERT_Prob": {"agg_value": 0.5, "value_by_index": {"0": {"prob": [0.4, 0.6], "avg_loss": [0.9, None]}}},
        "forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": {"0": {"prob": 0.5}, "1": {"prob": None, "avg_loss": None}}},
        "forget_quality": {"agg_value": None},
        "mia_min_k": {"forget": side, "holdout": side, "auc": 0.75, "agg_value": 0.75},
        "model_utility": {"agg_value": 0.25},
    }
    assert list(entries) == sorted(entries)
    assert list(eval_entries(TOFU, dict(reversed(found().items())), OPEN_UNLEARNING)) == sorted(entries)


def test_the_summary_has_the_suites_keys_and_leaves_out_what_has_no_number() -> None:
    assert summary_entries(TOFU, found()) == {"forget_Q_A_Prob": 0.5, "mia_min_k": 0.75, "model_utility": 0.25}


def test_what_they_do_not_have_stays_out_of_their_file() -> None:
    folds = {"scal_1_Prob": MetricValue((SetValues("scal_1", np.array([0.5])),), mean_of_columns)}
    assert eval_entries(MUSE, folds, OPEN_UNLEARNING) == {}


def test_written_and_read_again_nothing_changes_and_ours_is_marked(tmp_path: Path) -> None:
    for convention in (OURS, OPEN_UNLEARNING):
        entries = eval_entries(TOFU, found(), convention)
        folder = tmp_path / convention.name
        write_entries(folder / "TOFU_EVAL.json", entries)
        for place in (folder, folder / "TOFU_EVAL.json"):  # a result's folder serves as well as the file in it
            logs = read_logs(place, TOFU)
            assert logs == entries
            assert logged_convention(logs) == convention.name
    text = (tmp_path / "open-unlearning" / "TOFU_EVAL.json").read_text()
    assert text == json.dumps(eval_entries(TOFU, found(), OPEN_UNLEARNING), indent=4)
    assert "NaN" not in text


def test_their_summariser_passes_over_our_mark() -> None:
    """It takes `agg_value` of entries that are metrics it was asked for, with `.get`: the mark must be an object."""
    entries = eval_entries(TOFU, found(), OURS)
    summary = {key: entry["agg_value"] for key, entry in entries.items() if entry.get("agg_value", None) is not None}
    assert "d2unlearn" not in summary
    assert summary["model_utility"] == 0.25


def test_logs_that_others_published_serve_as_the_reference(tmp_path: Path) -> None:
    published = {
        "forget_truth_ratio": {"agg_value": 0.6, "value_by_index": {str(i): {"score": 0.1 * i} for i in range(20)}},
        "mia_min_k": {"forget": {}, "holdout": {}, "auc": 0.5, "agg_value": 0.5},
    }
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(published))
    logs = read_logs(tmp_path, TOFU)
    ratios = np.array([0.1 * i + 0.01 for i in range(20)])
    ratio = MetricValue((SetValues("forget", ratios),), mean_of_columns, records=tuple({"score": each} for each in ratios))
    sides = SetValues("forget", np.array([1.0, 1.0, 1.0, 1.0, 4.0])), SetValues("holdout", np.array([2.0]))
    attack = MetricValue(sides, lambda _: 0.8)
    study = MetricInputs({}, OURS, logs, {"forget_truth_ratio": ratio, "mia_min_k": attack})
    quality = ForgetQuality("forget_truth_ratio", better="higher").compute(study)
    assert quality.value == pytest.approx(1.0, abs=1e-6)  # moved by one place of twenty
    assert PrivLeak("mia_min_k").compute(study).value == pytest.approx(-60.0, rel=1e-12)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"forget_truth_ratio": {"agg_value": 0.', "is not valid JSON"),
        ("[1, 2]", "should hold a JSON object, not list"),
        ('{"forget_truth_ratio": 0.5}', "forget_truth_ratio should have a number (or null) as agg_value"),
        ('{"forget_truth_ratio": {"agg_value": "high"}}', "forget_truth_ratio should have a number (or null) as agg_value"),
        (
            '{"x": {"agg_value": 1, "value_by_index": {"3": {"score": "?"}}}}',
            "x, example 3: score should be a number (or null)",
        ),
        ('{"x": {"agg_value": 1, "value_by_index": {"3": 1}}}', "x, example 3: score should be a number (or null)"),
        ('{"x": {"agg_value": 1, "value_by_index": [1]}}', "x: value_by_index should be an object"),
    ],
)
def test_what_is_no_such_file_is_said_with_the_place(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "logs.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_logs(path, TOFU)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_said_with_what_to_give(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no.json"):
        with pytest.raises(
            DataError, match=r"--retain-logs takes the TOFU_EVAL\.json of a model that never saw the forget set"
        ):
            read_logs(place, TOFU)


def test_an_example_without_a_score_is_left_out_of_the_test(tmp_path: Path) -> None:
    logs: dict[str, Any] = {"r": {"agg_value": 1.0, "value_by_index": {"0": {"score": None}, "1": {"score": 0.5}}}}
    ratio = MetricValue((SetValues("forget", np.array([0.5])),), mean_of_columns, records=({"score": 0.5},))
    quality = ForgetQuality("r", better="higher").compute(MetricInputs({}, OURS, logs, {"r": ratio}))
    assert quality.value == 1.0
