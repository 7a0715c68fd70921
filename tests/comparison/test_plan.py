"""Which runs there are, what each waits for, and every mistake of the settings at once."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from d2unlearn.comparison.plan import (
    Comparison,
    Run,
    awaited,
    comparison_of,
    entries_of,
    find_run,
    needs_of,
    runs_of,
)
from d2unlearn.config import CompareSettings, load_settings
from d2unlearn.errors import ConfigError
from d2unlearn.fields import flag_of

SPLIT = {"forget": "f.jsonl", "retain": "r.jsonl"}
METHODS, GUARDS = ("eua", "npo", "simnpo"), ("input_classifier", "prompt_guard")


def compared(splits: dict[str, Any], **changes: Any) -> Comparison:
    settings = CompareSettings("model", splits, "out", **{"seeds": [4, 5], **changes})
    return comparison_of(settings, methods=METHODS, guards=GUARDS)


def test_runs_are_tunings_and_an_evaluation_a_seed_after_the_models_as_they_are() -> None:
    comparison = compared({"ten": {**SPLIT, "oracle": "o"}}, methods=["npo"], guards=["input_classifier"])
    assert [run.key for run in runs_of(comparison, {})] == [
        "ten/original/seed-4",
        "ten/oracle/seed-4",
        *(f"ten/npo/{part}" for part in ("tune", "seed-4", "seed-5")),
        *(f"ten/input_classifier/{part}" for part in ("tune", "seed-4", "seed-5")),
    ]
    assert [run.kind for run in runs_of(comparison, {})] == ["as_is"] * 2 + ["method"] * 3 + ["guard"] * 3


def test_without_names_all_methods_are_compared() -> None:
    assert compared({"ten": SPLIT}).methods == METHODS


def test_an_evaluation_waits_for_its_tuning_and_a_method_s_for_the_retain_model_whose_logs_it_is_held_against() -> None:
    with_logs = {**SPLIT, "oracle": "o", "benchmark": "tofu", "data": "d"}
    comparison = compared({"ten": with_logs, "five": SPLIT}, guards=["input_classifier"])

    def needs(key: str) -> list[str]:
        return needs_of(comparison, find_run(runs_of(comparison, {}), key))

    assert needs("ten/npo/tune") == needs("ten/oracle/seed-4") == needs("five/original/seed-4") == []
    assert needs("ten/original/seed-4") == ["ten/oracle/seed-4"]
    assert needs("ten/npo/seed-5") == ["ten/npo/tune", "ten/oracle/seed-4"]
    assert needs("ten/input_classifier/seed-5") == ["ten/input_classifier/tune"]
    assert needs("five/npo/seed-5") == ["five/npo/tune"]


def test_the_strongest_of_another_split_are_known_once_all_of_it_is_tuned() -> None:
    comparison = compared({"ten": SPLIT, "five": {**SPLIT, "strongest": 2, "strongest_of": "ten", "guards": []}})
    five = comparison.split("five")
    scores = {"ten/eua/tune": 0.7, "ten/npo/tune": 0.9}
    assert entries_of(comparison, five, scores) == []
    assert entries_of(comparison, five, scores | {"ten/simnpo/tune": 0.7}) == [("eua", "method"), ("npo", "method")]
    assert entries_of(comparison, five, scores | {"ten/simnpo/tune": 0.8}) == [
        (name, "method")
        for name in ("eua", "npo", "simnpo")  # eua is what they are compared with
    ]
    assert [run.key for run in runs_of(comparison, scores) if run.split == "five"] == ["five/original/seed-4"]


def test_fewer_methods_do_not_make_weaker_ones_strong() -> None:
    splits = {"ten": SPLIT, "five": {**SPLIT, "strongest": 1, "strongest_of": "ten"}}
    scores = {"ten/eua/tune": 0.7, "ten/npo/tune": 0.9, "ten/simnpo/tune": 0.8}
    for methods, expected in ((["npo"], [("npo", "method")]), (["simnpo", "eua"], [("eua", "method")])):
        comparison = compared(splits, methods=methods)
        assert entries_of(comparison, comparison.split("five"), scores) == expected


def test_whose_tuning_is_awaited_is_said() -> None:
    splits = {"ten": SPLIT, "five": {**SPLIT, "strongest": 1, "strongest_of": "ten"}}
    comparison = compared(splits)
    assert awaited(comparison, comparison.split("five"), {}) == "the 1 strongest of ten, once all of those are tuned"
    scores = {"ten/eua/tune": 0.7, "ten/npo/tune": 0.9, "ten/simnpo/tune": 0.8}
    assert awaited(comparison, comparison.split("five"), scores) == ""
    assert awaited(comparison, comparison.split("ten"), {}) == ""


def test_a_split_may_have_methods_of_its_own() -> None:
    comparison = compared({"ten": {**SPLIT, "methods": ["simnpo"], "guards": ["prompt_guard"]}}, guards=["input_classifier"])
    assert entries_of(comparison, comparison.splits[0], {}) == [("simnpo", "method"), ("prompt_guard", "guard")]


def test_every_mistake_is_said_at_once() -> None:
    splits = {
        "ten": {"forget": "f", "retian": "r"},
        "five": {**SPLIT, "strongest": 2},
        "one": {**SPLIT, "benchmark": "muse", "also_forget": {"retain": "x"}},
        "t wo": {**SPLIT, "strongest": 1, "strongest_of": "nine"},
    }
    with pytest.raises(ConfigError) as caught:
        compared(splits, methods=["npo", "npo", "nop"], guards=["guard"], seeds=[1, 1], search={"npo": {"b": [2, 1]}, "x": {}})
    said = "\n".join(caught.value.mistakes)
    for part in (
        "split ten: unknown key retian; did you mean retain?",
        "split ten: retain is missing",
        "split five: strongest and strongest_of go together",
        "split one: benchmark should be tofu, not 'muse'",
        "split one: benchmark needs data",
        "split one: a further set cannot be called retain",
        "split t wo: strongest_of should be a split that stands before it, not 'nine'",
        "split t wo: its name should be of letters",
        "method 'nop' is not known; known: eua, npo, simnpo",
        "guard 'guard' is not known",
        "npo is named twice",
        "seeds should be different numbers",
        "search npo.b: 2.0 should lie below 1.0",
        "search names 'x', no method or guard",
    ):
        assert part in said


def test_a_key_that_is_none_is_refused() -> None:
    runs = runs_of(compared({"ten": SPLIT}), {})
    assert find_run(runs, "ten/npo/tune") == Run("ten", "npo", "method", None)
    with pytest.raises(ConfigError, match="there is no run 'ten/npo/seed-9'"):
        find_run(runs, "ten/npo/seed-9")


def test_the_project_s_own_comparison_is_one_that_can_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    from d2unlearn.guards import GUARDS as ALL_GUARDS
    from d2unlearn.methods import METHODS as ALL_METHODS

    file = Path(__file__).resolve().parents[2] / "experiments" / "comparison.yaml"
    comparison = comparison_of(load_settings(CompareSettings, file, {}), methods=ALL_METHODS, guards=ALL_GUARDS)
    assert set(ALL_METHODS) - set(comparison.methods) == {"deep_eua"}
    assert comparison.settings.seeds == [0, 1, 2]
    assert set(comparison.guards) | set(comparison.settings.left_out) == set(ALL_GUARDS)
    runs = runs_of(comparison, {f"forget10/{name}/tune": 1 / (1 + rank) for rank, name in enumerate(comparison.methods)})
    assert {run.entry for run in runs if run.split == "forget05" and run.kind == "method"} == set(comparison.methods[:4])


def test_the_example_of_the_documentation_is_one_that_can_be_planned(tmp_path: Path) -> None:
    from d2unlearn.guards import GUARDS as ALL_GUARDS
    from d2unlearn.methods import METHODS as ALL_METHODS

    page = (Path(__file__).resolve().parents[2] / "docs" / "comparison.md").read_text(encoding="utf-8")
    file = tmp_path / "compare.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    comparison = comparison_of(load_settings(CompareSettings, file, {}), methods=ALL_METHODS, guards=ALL_GUARDS)
    keys = [run.key for run in runs_of(comparison, {})]
    assert len(keys) == 2 + 5 * 4
    assert re.findall(r"--key (\S+)`", page) == ["people/npo/seed-1"]
    assert "people/npo/seed-1" in keys


def test_every_key_of_a_comparison_s_file_is_an_option_and_is_named_so_where_it_is_missing() -> None:
    hints = get_type_hints(CompareSettings, include_extras=True)
    for setting in fields(CompareSettings):
        assert f"--{setting.name.replace('_', '-')}" in flag_of(setting.name, hints[setting.name]).replace("/", " ").split()
    with pytest.raises(ConfigError, match=r"splits is missing \(--splits, or `splits:` in the file\)"):
        load_settings(CompareSettings, None, {"model": "m", "output": "o"})
