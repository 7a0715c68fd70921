"""The comparison from end to end on a model of 32 numbers a token: chosen on validation, evaluated on tests, done once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cli.command import d2, refused
from d2unlearn.audit.judging import judging_hash
from d2unlearn.comparison import evaluating, tuning
from d2unlearn.comparison.context import RunContext
from d2unlearn.comparison.objective import OBJECTIVE, validation_score
from d2unlearn.comparison.plan import Run, comparison_of
from d2unlearn.comparison.records import RunResult, TuningResult
from d2unlearn.comparison.run import run_compare, store_of
from d2unlearn.comparison.scheduler import RunCommand
from d2unlearn.comparison.store import read_results
from d2unlearn.config import CompareSettings, UnlearnSettings, load_settings
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.data.template import Template
from d2unlearn.errors import ArtifactError, ConfigError, GateError
from d2unlearn.guards import GUARDS
from d2unlearn.methods import METHODS
from d2unlearn.metrics.memorization import answer_probability, extraction_strength
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.schema import GATE_FILE
from d2unlearn.serialization import read_evaluation
from d2unlearn.teacher_forcing import score_rows
from d2unlearn.training.unlearn import run_unlearn

from .conftest import Compared, few_draws
from .tiny import write

pytestmark = pytest.mark.trains

KEYS = (
    *("original/seed-0", "oracle/seed-0", "eua/tune", "eua/seed-0"),
    *("gradient_difference/tune", "gradient_difference/seed-0", "input_classifier/tune", "input_classifier/seed-0"),
)


@pytest.fixture(autouse=True, scope="module")
def as_many_draws_as_in_what_was_compared() -> Iterator[None]:
    with few_draws():
        yield


@pytest.fixture(scope="module")
def results(compared: Compared) -> dict[str, RunResult | TuningResult]:
    runs, tunings = read_results(compared.output / "results")
    return {result.key.removeprefix("cities/"): result for result in (*runs, *tunings)}


@pytest.fixture
def copied(compared: Compared, tmp_path: Path) -> CompareSettings:
    """The same comparison in a folder of its own, all of it done."""
    shutil.copytree(compared.output, tmp_path / "out")
    return replace(compared.settings, output=str(tmp_path / "out"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[UnlearnSettings]:
    """What `unlearn` was asked for."""
    asked: list[UnlearnSettings] = []

    def watched(settings: UnlearnSettings) -> Path:
        asked.append(settings)
        return run_unlearn(settings)

    for module in (tuning, evaluating):
        monkeypatch.setattr(module, "run_unlearn", watched)
    return asked


def context_of(settings: CompareSettings, entry: str, seed: int | None) -> RunContext:
    comparison = comparison_of(settings, methods=METHODS, guards=GUARDS)
    kind: Any = "guard" if entry in GUARDS else "method"
    return RunContext(comparison, Run("cities", entry, kind, seed), store_of(settings))


def value_of(result: RunResult, name: str, metric: str) -> float:
    questions = result.of_set(name)
    assert questions is not None
    return next(found.value for found in questions.metrics if found.name == metric)


def knowledge(folder: str | Path, rows: Any) -> dict[str, float]:
    template = Template(load_tokenizer(folder))
    held = score_rows(load_model(folder), [template.tokens(row) for row in rows], batch_size=7)
    return {
        "extraction_strength": float(np.mean([extraction_strength(row.correct) for row in held])),
        "answer_probability": float(np.mean([answer_probability(row.nll) for row in held])),
    }


def test_every_run_has_its_record_and_nothing_half_done_is_left(compared: Compared, results: dict[str, Any]) -> None:
    assert set(results) == set(KEYS)
    left = [path for path in (compared.output / "work").rglob("*") if path.is_file()]
    assert left == []
    assert compared.said[-1] == str((compared.output / "pages" / "index.html").resolve())


def test_trials_are_as_many_for_all_and_begin_with_the_published_parameters(results: dict[str, Any]) -> None:
    tunings = {key: result for key, result in results.items() if isinstance(result, TuningResult)}
    assert {len(tuning.trials) for tuning in tunings.values()} == {2}
    assert tunings["eua/tune"].trials[0].parameters == {"learning_rate_factor": 1.0, "gamma": 0.05}
    assert tunings["gradient_difference/tune"].trials[0].parameters == {"learning_rate_factor": 1.0, "gamma": 1.0}
    for result in tunings.values():
        assert result.best.score == max(trial.score for trial in result.trials)
        assert [trial.number for trial in result.trials] == [0, 1]


def test_a_trial_is_chosen_by_what_validation_questions_show_of_the_raw_weights(
    compared: Compared, results: dict[str, Any], tmp_path: Path
) -> None:
    """The second trial of EUA again by hand: trained, then asked for the validation rows alone."""
    context, tuned = context_of(compared.settings, "eua", None), results["eua/tune"]
    trial = tuned.trials[1]
    folder = run_unlearn(
        UnlearnSettings(
            model=compared.settings.model,
            forget=str(context.files["forget"]),
            retain=str(context.files["retain"]),
            output=str(tmp_path / "again"),
            method_parameters={"gamma": trial.parameters["gamma"]},
            learning_rate=3e-3 * trial.parameters["learning_rate_factor"],
            epochs=4,
            batch_size=6,
            accumulation=1,
            keep="last",
        )
    )
    forget, retain = (knowledge(folder, rows) for rows in (context.questions.validation, context.held_out.validation))
    before = knowledge(compared.settings.model, context.held_out.validation)
    for side, means in (("forget", forget), ("retain", retain)):
        for name, value in means.items():
            assert trial.measured[f"{side}_{name}"] == pytest.approx(value, abs=1e-4)
    assert tuned.before == pytest.approx(before, abs=1e-4)
    assert trial.score == pytest.approx(validation_score(forget, retain, before), abs=1e-4)
    assert (tuned.n_forget, tuned.n_retain) == (len(context.questions.validation), len(context.held_out.validation))


def test_test_questions_are_seen_by_no_choice(compared: Compared, results: dict[str, Any]) -> None:
    context = context_of(compared.settings, "eua", 0)
    chosen_by = {content_hash(row) for row in (*context.questions.validation, *context.held_out.validation)}
    for name in ("forget", "retain", "forget_paraphrased"):
        tested = read_examples(context.files[f"test/{name}"])
        assert not {content_hash(row) for row in tested} & chosen_by
        assert results["eua/seed-0"].of_set(name).n == len(tested)
    given = {content_hash(row) for row in read_examples(context.files["retain"])}
    assert not given & {content_hash(row) for row in read_examples(context.files["test/retain"])}
    answers = {row.answer for row in context.questions.validation}
    benchmark = read_examples(context.benchmark_data / "cities_perturbed.jsonl")
    assert not answers & {row.answer for row in benchmark}
    assert len(benchmark) + len(answers) == 24


def test_what_is_evaluated_is_the_model_of_the_chosen_trial(compared: Compared, results: dict[str, Any]) -> None:
    run, tuned = results["gradient_difference/seed-0"], results["gradient_difference/tune"]
    assert run.parameters == tuned.best.parameters
    assert run.learning_rate == pytest.approx(3e-3 * tuned.best.parameters["learning_rate_factor"])
    assert (run.cost.device, run.cost.seconds > 0.05, run.cost.processor_seconds > 0.05) == ("cpu", True, True)
    assert {"d2unlearn", "torch"} <= run.versions.keys()


def test_the_original_knows_and_methods_forget(results: dict[str, Any]) -> None:
    """What the tiny world is for: numbers that differ by what was done."""

    def strength(key: str, name: str) -> float:
        return value_of(results[key], name, "extraction_strength")

    assert strength("original/seed-0", "forget") > 0.9 > 0.5 > strength("oracle/seed-0", "forget")
    assert min(strength("original/seed-0", "retain"), strength("oracle/seed-0", "retain")) > 0.9
    assert strength("gradient_difference/seed-0", "forget") < 0.5 < strength("gradient_difference/seed-0", "retain")
    back = {attack.choice: attack.probability for attack in results["original/seed-0"].comebacks}
    assert set(back) == {"spread over groups", "one row"}
    assert list(back["one row"]) == ["0", "80"]
    assert {attack.learning_rates for attack in results["original/seed-0"].comebacks} == {(5e-4,)}


def test_forgotten_test_questions_are_asked_in_other_words_the_same_of_everybody(
    compared: Compared, results: dict[str, Any]
) -> None:
    asked = {key: result.reworded for key, result in results.items() if isinstance(result, RunResult)}
    assert asked.pop("input_classifier/seed-0") == ()
    name, groups = f"other_words.49.{judging_hash()[:8]}", asked["eua/seed-0"][0].groups
    assert {(found.name, found.n, found.groups) for some in asked.values() for found in some} == {(name, 4, groups)}
    for (found,) in asked.values():
        values = dict(found.values)
        told = values.pop("any")
        assert len(values) == 24
        assert told == tuple(np.nanmax(list(values.values()), axis=0))
        assert found.metrics[0].value == np.mean(told)
    table = (compared.output / "table.md").read_text()
    assert "told in other words, any of 49 ↓" in table


def test_a_guard_refuses_behind_untouched_weights(results: dict[str, Any]) -> None:
    guard, original = results["input_classifier/seed-0"], results["original/seed-0"]
    assert (guard.score_name, guard.comebacks, guard.learning_rate) == ("input_classifier", (), None)
    for name in ("forget", "retain"):
        assert guard.of_set(name).values["extraction_strength"] == original.of_set(name).values["extraction_strength"]
    assert value_of(guard, "forget", "guarded_refusal_rate") > 0.8
    assert value_of(guard, "retain", "guarded_refusal_rate") <= 0.2


def test_the_benchmark_s_metrics_are_held_against_the_retain_model(compared: Compared, results: dict[str, Any]) -> None:
    logs = json.loads((compared.output / "results" / "cities" / "oracle" / "logs.json").read_text())
    assert set(logs["forget_truth_ratio"]["value_by_index"]["0"]) == {"score"}
    assert "value_by_index" not in logs["forget_Q_A_Prob"]
    suite = {metric.name: metric for metric in results["eua/seed-0"].suite}
    assert 0.0 <= suite["forget_quality"].value <= 1.0
    assert suite["model_utility"].n > 0
    assert np.isnan({metric.name: metric for metric in results["oracle/seed-0"].suite}["forget_quality"].value)
    assert results["input_classifier/seed-0"].suite == ()


def test_questions_stand_in_the_same_order_in_every_record(results: dict[str, Any]) -> None:
    runs = [result for result in results.values() if isinstance(result, RunResult)]
    for name in ("forget", "retain"):
        assert len({run.of_set(name).groups for run in runs}) == 1
    found = results["eua/seed-0"].of_set("forget")
    strength = value_of(results["eua/seed-0"], "forget", "extraction_strength")
    assert np.mean(found.values["extraction_strength"]) == pytest.approx(strength, abs=1e-5)


def test_done_work_is_not_repeated_and_the_same_comes_out(copied: CompareSettings, trained: list[Any]) -> None:
    folder = Path(copied.output)
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")}
    table, index = (folder / "table.md").read_text(), (folder / "pages" / "index.html").read_text()
    list(run_compare(copied))
    assert {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")} == before
    assert trained == []
    assert ((folder / "table.md").read_text(), (folder / "pages" / "index.html").read_text()) == (table, index)


def test_a_tuning_that_was_killed_goes_on_after_its_last_trial(
    copied: CompareSettings, trained: list[UnlearnSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(copied, "gradient_difference", None)
    whole = context.store.tuning(context.run)
    context.store.path(context.run).unlink()

    def killed(settings: UnlearnSettings) -> Path:
        if len(trained):
            raise KeyboardInterrupt
        trained.append(settings)
        return run_unlearn(settings)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "run_unlearn", killed)
        with pytest.raises(KeyboardInterrupt):
            list(run_compare(replace(copied, run=context.run.key)))
    assert not context.store.is_done(context.run)
    list(run_compare(replace(copied, run=context.run.key)))
    assert len(trained) == 2
    again = context.store.tuning(context.run)
    assert [(t.parameters, t.score) for t in again.trials] == [(t.parameters, t.score) for t in whole.trials]
    assert list(context.store.work(context.run).glob("*")) == []


def test_an_evaluation_that_was_killed_after_training_does_not_train_again(
    copied: CompareSettings, trained: list[UnlearnSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(copied, "eua", 0)
    whole: Any = context.store.result(context.run)
    context.store.path(context.run).unlink()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "run_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            list(run_compare(replace(copied, run=context.run.key)))
    artifact = context.workspace / "artifact"
    changed = (artifact / "model.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("d2unlearn.training.unlearn._train_and_publish", killed)
        list(run_compare(replace(copied, run=context.run.key, keep_artifacts=True)))
    kept = Path(copied.output) / "artifacts" / context.run.key
    assert (kept / "model.safetensors").stat().st_mtime_ns == changed
    again: Any = context.store.result(context.run)
    assert repr((again.sets, again.suite, again.comebacks)) == repr((whole.sets, whole.suite, whole.comebacks))
    assert again.cost.seconds > 0.05


def test_results_of_other_settings_are_not_taken_for_these(copied: CompareSettings) -> None:
    with pytest.raises(ArtifactError, match=r"results of other data, weights or settings: \S+eua/tune\.json, ") as caught:
        list(run_compare(replace(copied, epochs=3.0)))
    assert str(caught.value).count(".json") == len(KEYS) - 2  # original and oracle are not trained
    with pytest.raises(ArtifactError, match=r"original/seed-0\.json, .*--force"):
        list(run_compare(replace(copied, max_new_tokens=5)))
    with pytest.raises(ArtifactError, match=r"other data, weights or settings: \S+eua/seed-0\.json; give --force"):
        list(run_compare(replace(copied, epochs=3.0, run="cities/eua/seed-0")))
    with pytest.raises(ArtifactError, match=r"original/seed-0\.json") as caught:
        list(run_compare(replace(copied, wording_rows=5)))
    assert str(caught.value).count(".json") == 4  # neither tunings nor the guard
    with pytest.raises(ArtifactError, match=r"eua/tune\.json"):
        list(run_compare(replace(copied, search={"eua": {"gamma": [0.1, 0.2]}})))
    assert list(run_compare(replace(copied, jobs=7, methods=["eua"], plan=True))) == [
        f"done    cities/{key}" for key in KEYS if not key.startswith("gradient")
    ]


def test_force_does_a_run_again_that_other_settings_did(copied: CompareSettings) -> None:
    forced = replace(copied, max_new_tokens=5, force=True, run="cities/original/seed-0")
    file = Path(copied.output) / "results" / "cities" / "original" / "seed-0.json"
    before = json.loads(file.read_text())["identity"]
    list(run_compare(forced))
    assert json.loads(file.read_text())["identity"] != before
    list(run_compare(replace(forced, force=False)))  # done now


def test_a_folder_that_no_comparison_made_is_left_alone(given: CompareSettings, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "table.md").write_text("mine")
    for run in (None, "cities/original/seed-0"):
        with pytest.raises(ArtifactError, match=r"mine is not empty, and no comparison made it; give --force"):
            list(run_compare(replace(given, output=str(output), run=run)))
    assert [path.name for path in output.iterdir()] == ["table.md"]


def test_a_run_that_fails_is_named_after_the_tables_of_the_others(
    copied: CompareSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    with pytest.raises(ArtifactError, match=r"1 run failed \(cities/npo/tune\)"):
        said += run_compare(replace(copied, methods=["eua", "npo"], search={"npo": {"bata": [0.1, 1]}}))
    assert "npo has no number bata to search" in capsys.readouterr().err
    assert (Path(copied.output) / "table.md").is_file()


def test_a_destroyed_model_scores_nothing_and_is_counted(copied: CompareSettings) -> None:
    given = replace(copied, methods=["npo"], search={"npo": {"learning_rate_factor": [1e32, 1e33], "beta": 0.1, "gamma": 1}})
    list(run_compare(replace(given, run="cities/npo/tune")))
    found = context_of(given, "npo", None)
    trials = found.store.tuning(found.run).trials
    assert [trial.score > 0 for trial in trials] == [True, False]
    assert (trials[1].measured, "destroys the model" in trials[1].reason) == ({}, True)


def test_a_run_before_its_time_and_one_that_is_none_are_refused(given: CompareSettings, tmp_path: Path) -> None:
    fresh = replace(given, output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="needs the results of cities/eua/tune, cities/oracle/seed-0"):
        list(run_compare(replace(fresh, run="cities/eua/seed-0")))
    with pytest.raises(ConfigError, match="there is no run 'cities/eua/seed-1'"):
        list(run_compare(replace(fresh, run="cities/eua/seed-1")))


def test_too_few_rows_for_the_rate_asked_for_are_told_before_anything_is_trained(
    given: CompareSettings, tmp_path: Path, trained: list[Any]
) -> None:
    fresh = replace(given, output=str(tmp_path / "out"), max_false_refusal=0.001)
    with pytest.raises(GateError, match="calibration prompts are too few"):
        list(run_compare(replace(fresh, run="cities/eua/tune")))
    assert trained == []


def test_what_every_run_would_fail_by_is_said_at_once_and_whole(given: CompareSettings, tmp_path: Path) -> None:
    gated = tmp_path / "gated"
    shutil.copytree(given.splits["cities"]["oracle"], gated)
    (gated / GATE_FILE).write_text("{}")
    splits = {
        "cities": {**given.splits["cities"], "oracle": "./nirvana"},
        "unread": {**given.splits["cities"], "forget": str(tmp_path / "forgot.jsonl")},
        "gated": {**given.splits["cities"], "oracle": str(gated)},
    }
    with pytest.raises(ConfigError) as caught:
        list(run_compare(replace(given, splits=splits, output=str(tmp_path / "out"))))
    said = caught.value.mistakes
    assert len(said) == 3
    assert said[0].startswith("split cities: ./nirvana is not a folder")
    assert "forgot.jsonl does not exist" in said[1]
    assert "split gated" in said[2]
    assert "evaluated without a gate" in said[2]


def test_what_is_not_in_the_comparison_is_not_in_its_tables(copied: CompareSettings) -> None:
    """Results of another method lie in the folder, of other settings perhaps: nobody has checked them."""
    list(run_compare(replace(copied, methods=["eua"], guards=[])))
    numbers = json.loads((Path(copied.output) / "table.json").read_text())["splits"][0]
    assert [row["contestant"] for row in numbers["rows"]] == ["original", "oracle", "eua", "prompt_guard"]


# -- what is left to read -------------------------------------------------------------------------------------------------


def test_the_table_holds_every_contestant_and_keeps_validation_apart(compared: Compared) -> None:
    text = (compared.output / "table.md").read_text()
    for name in ("original", "oracle", "eua", "gradient_difference", "input_classifier ¹", "prompt_guard ²"):
        assert f"| {name} |" in text
    before, tuning_part = text.split("### How parameters were chosen")
    assert OBJECTIVE in tuning_part
    assert "validation" not in before
    assert "² prompt_guard: needs a model that follows instructions." in text
    assert "forget quality ↑" in text
    numbers = json.loads((compared.output / "table.json").read_text())["splits"][0]
    shown = {row["contestant"]: row["cells"] for row in numbers["rows"]}
    assert shown["eua"]["cost.time"]["value"] == pytest.approx(1.0)
    assert f"{shown['eua']['forget.extraction_strength']['value']:.3f}" in text


def test_pages_lead_from_each_contestant_to_its_energies_and_answers(compared: Compared) -> None:
    index = compared.output / "pages" / "index.html"
    text = index.read_text()
    links = re.findall(r'<a href="([^"]+)">([^<]+)</a>', text)
    assert ("cities/eua/seed-0.html", "eua") in links
    assert {name for _, name in links} == {"original", "oracle", "eua", "gradient difference", "input classifier"}
    assert not re.search(r"https?:|<script|javascript:", text)
    for link, name in links:
        page = (index.parent / link).read_text()
        assert "Questions, side by side" in page
        assert "Energy of the questions" in page
        result = read_evaluation(compared.output / "answers" / link.removesuffix(".html") / "evaluation.json")
        assert result.label == name.replace(" ", "_")
    assert 'aria-label="Forgetting against keeping on cities. original: left' in text


# -- commands -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[CompareSettings], Path]:
    def written(settings: CompareSettings) -> Path:
        path = tmp_path / "comparison.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in asdict(settings).items() if value is not None}))
        return path

    return written


def empty(file: Path) -> Path:
    """Settings whose splits name nothing."""
    path = file.with_name("empty.yaml")
    path.write_text("splits: {}\n")
    return path


def test_the_command_plans_and_finds_everything_done(
    copied: CompareSettings, file_of: Callable[[CompareSettings], Path]
) -> None:
    file = file_of(copied)
    planned = d2("compare", "--config", file, "--plan")
    assert (planned.code, planned.out.splitlines()) == (0, [f"done    cities/{key}" for key in KEYS])
    ran = d2("compare", "--config", file, "--method", "eua", "--backend", "here")
    assert ran.code == 0
    assert ran.out.splitlines()[-1].endswith("pages/index.html")
    assert "eua/tune.json is done" in d2("compare", "--config", file, "--run", "cities/eua/tune").err
    assert "nothing to forget" in refused(d2("compare", "--model", "m", "--output", "o", "--config", empty(file)))


def test_splits_and_ranges_can_be_given_on_the_command_line(copied: CompareSettings, tmp_path: Path) -> None:
    split = copied.splits["cities"]
    ran = d2(
        *("compare", "--model", copied.model, "--output", tmp_path / "fresh", "--method", "npo", "--seed", 3),
        *("--split", f"towns={{forget: {split['forget']}, retain: {split['retain']}}}"),
        *("--search", "npo={beta: [0.1, 1], gamma: 2}", "--left-out", "dpo=too slow", "--plan"),
    )
    assert ran.out.splitlines() == [f"to do   towns/{key}" for key in ("original/seed-3", "npo/tune", "npo/seed-3")]


def launched(launcher: str, settings: CompareSettings, file: Path, key: str) -> subprocess.CompletedProcess[str]:
    """A run's own command, started by something else than python."""
    command = RunCommand(file, launcher, Path(settings.output) / "logs").of(Run("cities", key.split("/")[1], "method", None))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)


def test_a_run_s_command_finds_the_splits_in_their_order(copied: CompareSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`strongest_of` looks back, whatever the splits are called."""

    class Enough(Exception):
        pass

    def backend(settings: CompareSettings, file: Path, do: Callable[[str], None]) -> Any:
        again = load_settings(CompareSettings, file, {})
        assert list(comparison_of(again, methods=METHODS, guards=GUARDS).splits) == list(asked.splits)
        raise Enough

    later = {**copied.splits["cities"], "strongest": 1, "strongest_of": "cities"}
    given = replace(copied, splits={**copied.splits, "a-later-one": later})
    asked = comparison_of(given, methods=METHODS, guards=GUARDS)
    monkeypatch.setattr("d2unlearn.comparison.run.backend_of", backend)
    with pytest.raises(Enough):
        list(run_compare(given))


@pytest.mark.slow
def test_two_processes_share_a_run_and_write_what_one_would(
    copied: CompareSettings, file_of: Callable[[CompareSettings], Path], results: dict[str, Any]
) -> None:
    """Three rows each: the effective batch, and so the outcome, is that of six."""
    halved = replace(copied, batch_size=3, results=str(Path(copied.output) / "halved"))
    torchrun = f"{sys.executable} -m torch.distributed.run --nproc_per_node 2 --standalone"
    done = launched(torchrun, halved, file_of(halved), "cities/eua/tune")
    assert done.returncode == 0, done.stderr[-3000:]
    context = context_of(halved, "eua", None)
    for ours, theirs in zip(context.store.tuning(context.run).trials, results["eua/tune"].trials, strict=True):
        assert ours.parameters == theirs.parameters
        assert ours.measured == pytest.approx(theirs.measured, abs=2e-3)


@pytest.mark.slow
def test_accelerate_starts_a_run(copied: CompareSettings, file_of: Callable[[CompareSettings], Path]) -> None:
    accelerate = f"{sys.executable} -m accelerate.commands.launch --cpu --num_machines 1 --mixed_precision no"
    launcher = f"{accelerate} --num_processes 1 --dynamo_backend no"
    done = launched(launcher, copied, file_of(copied), "cities/eua/tune")
    assert (done.returncode, done.stderr.count("eua/tune.json is done: same inputs, same settings")) == (0, 1), done.stderr


def test_rows_written_for_other_verbs_read_back_as_they_were(compared: Compared, tmp_path: Path) -> None:
    context = context_of(compared.settings, "eua", 0)
    found = read_examples(context.files["forget"])
    assert [(row.prompt, row.answer, row.group) for row in found] == [
        (row.prompt, row.answer, row.group) for row in context.questions.forget
    ]
    texts = [{"text": f"{about} {i}", "group": about} for about in ("Rome", "Berlin", "Paris") for i in range(20)]
    split = {"forget": str(write(tmp_path / "forget.jsonl", texts)), "retain": compared.settings.splits["cities"]["retain"]}
    plain = context_of(replace(compared.settings, output=str(tmp_path), splits={"cities": split}), "eua", 0)
    again = read_examples(plain.files["forget"])
    assert [(row.prompt, row.answer, row.group) for row in again] == [((), row["text"], row["group"]) for row in texts]
