"""The whole trial on tiny models: which rows are judged, what is written and found again, and what the numbers must satisfy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from d2unlearn.analysis import model as model_trial
from d2unlearn.analysis import run as analyze_module
from d2unlearn.analysis import sets as sets_module
from d2unlearn.analysis.detectors import BASE_DETECTOR, DETECTORS
from d2unlearn.analysis.model import CALIBRATION_SIZES, NO_LAYERS
from d2unlearn.analysis.perturbations import PERTURBATIONS
from d2unlearn.analysis.recorder import LAYER_POSITIONS
from d2unlearn.analysis.records import Analysis, Estimate, read_analysis, write_analysis
from d2unlearn.analysis.roc import ROC_STATISTICS
from d2unlearn.analysis.run import run_analyze
from d2unlearn.analysis.sets import read_analysis_sets
from d2unlearn.analysis.thresholds import PLACEMENTS, REFUSAL_RATES
from d2unlearn.config import AnalyzeSettings
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.errors import ArtifactError, DataError, ModelError
from d2unlearn.gate import EnergyGate
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.schema import ANALYSIS_FILE, Example, Message
from d2unlearn.stats import auroc, ks_distance

FILLERS = ["is", "of", "it", "he", "she", "was", "born", "in", "a", "city"]
N = {"forget": 12, "retain": 14, "facts": 7, "calibration": 26}


def rows(name: str, seed: int, n: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)
    return [
        {"question": f"What {name} {' '.join(rng.choice(FILLERS, 3))} {i}?", "answer": "it was.", "group": f"{name} {i // 3}"}
        for i in range(n)
    ]


def write(path: Path, given: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return str(path)


def save(folder: Path, seed: int) -> str:
    tokenizer = tiny_models.tokenizer()
    model = tiny_models.llama(seed=seed, vocabulary=len(tokenizer))
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    """Enough for intervals to be intervals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets_module, "N_BOOT", 60)
        patch.setattr(model_trial, "N_CHOICES", 20)
        patch.setattr(model_trial, "N_FITTED_CHOICES", 5)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> AnalyzeSettings:
    folder = tmp_path_factory.mktemp("trial")
    files = {name: write(folder / f"{name}.jsonl", rows(name, place, n)) for place, (name, n) in enumerate(N.items())}
    return AnalyzeSettings(
        model=save(folder / "unlearned", 0),
        original=save(folder / "original", 1),
        oracle=save(folder / "oracle", 2),
        forget=files["forget"],
        retain=files["retain"],
        also_retain={"facts": files["facts"]},
        calibration=files["calibration"],
        output=str(folder / "out"),
        max_new_tokens=6,
        batch_size=8,
        disturbed=6,
    )


@pytest.fixture(scope="module")
def found(settings: AnalyzeSettings) -> Analysis:
    return read_analysis(run_analyze(settings))


def estimates(value: object) -> list[Estimate]:
    """Every estimate anywhere in a record."""
    if isinstance(value, Estimate):
        return [value]
    if is_dataclass(value):
        return estimates(tuple(vars(value).values()))
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return [estimate for part in inside for estimate in estimates(part)]


def test_every_detector_is_on_every_pair_of_sets_of_every_model(found: Analysis) -> None:
    assert [(s.name, s.kind, s.n, s.unscored) for s in found.sets] == [
        ("forget", "forget", 12, 0),
        ("retain", "retain", 14, 0),
        ("facts", "retain", 7, 0),
    ]
    assert [detector.name for detector in found.indices] == list(DETECTORS)
    assert [trial.role for trial in found.models] == ["original", "model", "oracle"]
    for trial in found.models:
        pairs = {(s.index, s.forget, s.retain) for s in trial.separations}
        assert pairs == {(name, "forget", other) for name in DETECTORS for other in ("retain", "facts")}
        assert {tuple(s.statistics) for s in trial.separations} == {tuple(ROC_STATISTICS)}
        decided = [(r.index, r.rate, r.placement) for r in trial.refusals]
        assert sorted(decided) == sorted(
            (name, rate, place) for name in DETECTORS for rate in REFUSAL_RATES for place in PLACEMENTS
        )
        assert {name: len(of["forget"]) for name, of in trial.values.items()} == dict.fromkeys(DETECTORS, 12)


def test_the_statistics_are_those_of_the_values_kept(found: Analysis) -> None:
    """The values are in the detector's own sign and rounded to six digits; forgotten ones of some detectors are lower."""
    sign = {detector.name: 1 if detector.forgotten == "higher" else -1 for detector in found.indices}
    for trial in found.models:
        for separation in trial.separations:
            retain, forget = (
                sign[separation.index] * np.array(trial.values[separation.index][name])
                for name in (separation.retain, separation.forget)
            )
            assert separation.statistics["auroc"].value == pytest.approx(auroc(retain, forget), abs=0.02)
            assert separation.statistics["ks_distance"].value == pytest.approx(ks_distance(retain, forget), abs=0.1)
        for refusal in trial.refusals:
            scores = sign[refusal.index] * np.array(trial.values[refusal.index]["forget"])
            assert refusal.refused["forget"].value == pytest.approx((scores > refusal.threshold).mean(), abs=0.1)


def test_every_estimate_lies_in_its_interval(found: Analysis) -> None:
    every = estimates(found.models) + estimates(found.disturbed)
    assert len(every) > 1000
    assert [estimate for estimate in every if not estimate.low <= estimate.value <= estimate.high] == []
    points = [estimate for point in found.curves for estimate in (point.false_refusals, point.missed)]
    assert all(0 <= estimate.low <= estimate.high <= 1 for estimate in points)


def test_equal_models_would_differ_in_nothing_and_these_do(found: Analysis) -> None:
    first, second = found.models[0], found.models[1]
    assert first.values["energy/prompt"]["forget"] != second.values["energy/prompt"]["forget"]
    by_index = {s.index: s for s in first.separations if s.retain == "retain"}
    for name in ("nll/prompt", "max-probability/prompt"):  # a token's NLL is minus the logarithm of its probability
        assert by_index[name].statistics["auroc"] == by_index["nll/prompt"].statistics["auroc"]
    assert by_index["perplexity"].statistics == by_index["nll/mean"].statistics
    assert by_index[BASE_DETECTOR].ahead == Estimate(0, 0, 0)


def test_the_layers_end_with_the_model_s_own_energy(found: Analysis) -> None:
    for trial in found.models:
        assert [layer.positions for layer in trial.layers] == [1, LAYER_POSITIONS]
        prompt = trial.layers[0]
        assert {len(spread) for spread in prompt.spread.values()} == {3}  # the embeddings and two layers
        own = np.quantile(trial.values["energy/prompt"]["facts"], [0.1, 0.5, 0.9])
        last = prompt.spread["facts"][-1]
        assert (last.low, last.middle, last.high) == pytest.approx(tuple(own), abs=1e-3)
        (same,) = (s for s in trial.separations if s.index == "energy/prompt" and s.retain == "retain")
        assert prompt.auroc[-1].value == pytest.approx(same.statistics["auroc"].value, abs=0.02)


def test_perturbations_that_change_no_probability_change_no_entropy_and_move_the_energy(found: Analysis) -> None:
    by_key = {(d.disturbance, d.index): d for d in found.disturbed}
    assert set(by_key) == {(name, index) for name in PERTURBATIONS for index in DETECTORS}
    assert list(found.disturbances) == list(PERTURBATIONS)
    for index in ("entropy/mean", "centred-energy/highest-2", "nll/min-k-20", "max-probability/prompt"):
        before, after = by_key["as calibrated", index], by_key["constant shift", index]
        assert (after.auroc, after.false_refusals, after.missed) == (before.auroc, before.false_refusals, before.missed)
    before, after = by_key["as calibrated", "energy/prompt"], by_key["constant shift", "energy/prompt"]
    assert after.auroc == before.auroc
    assert after.false_refusals.value == 0
    assert after.missed.value == 1


def test_calibration_sizes_are_those_that_the_rows_allow(found: Analysis) -> None:
    assert (found.n_fit, found.n_calibration) == (13, 13)
    assert {point.n for point in found.curves} == {20}
    assert CALIBRATION_SIZES[:2] == (20, 50)
    assert {(p.index, p.rate) for p in found.curves} == {(name, rate) for name in DETECTORS for rate in REFUSAL_RATES}
    guaranteed = {(p.rate, p.guaranteed) for p in found.curves if p.index == BASE_DETECTOR}
    assert guaranteed == {(0.01, False), (0.05, True)}  # 19 suffice for 5%


def test_answers_to_look_at_are_the_typical_and_the_most_misleading(found: Analysis) -> None:
    assert [(a.set_name, a.choice) for a in found.asked] == [
        (name, choice) for name in ("forget", "retain", "facts") for choice in ("typical", "most misleading")
    ]
    values = found.models[1].values[BASE_DETECTOR]
    for asked in found.asked:
        own = next(told for told in asked.told if told.role == "model")
        assert len(own.tokens) == len(own.energies) <= 6
        score = np.sort(own.energies)[-2:].mean()
        ordered = np.sort(values[asked.set_name])
        expected = ordered[len(ordered) // 2] if asked.choice == "typical" else ordered[0 if asked.kind == "forget" else -1]
        assert score == pytest.approx(expected, abs=1e-3)
        assert [told.role for told in asked.told] == ["original", "model", "oracle"]


def test_costs_are_of_every_detector(found: Analysis) -> None:
    assert [cost.index for cost in found.costs] == list(DETECTORS)
    assert found.generation_ms > 0
    assert 1 <= found.answer_tokens <= 6


def test_the_result_is_written_once_and_read_back_exactly(
    settings: AnalyzeSettings,
    found: Analysis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(analyze_module, "analyze", lambda *_: pytest.fail("analysed again"))
    assert run_analyze(settings) == Path(settings.output) / ANALYSIS_FILE
    assert "is done: same inputs, same settings" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="holds the result of other inputs or settings"):
        run_analyze(replace(settings, seed=1))
    write_analysis(tmp_path / "copy.json", found)
    assert read_analysis(tmp_path / "copy.json") == found
    manifest = json.loads((Path(settings.output) / "d2_manifest.json").read_text())
    assert (manifest["command"], manifest["settings"]["disturbed"]) == ("analyze", 6)


def test_a_file_that_is_no_analysis_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.json does not exist; give the analysis\.json"):
        read_analysis(tmp_path / "no.json")
    (tmp_path / "other.json").write_text('{"model": "x"}')
    with pytest.raises(DataError, match=r"other\.json is not an analysis: analysis lacks label, reference"):
        read_analysis(tmp_path / "other.json")


def test_without_calibration_rows_half_of_the_retained_ones_are_taken_and_not_judged(settings: AnalyzeSettings) -> None:
    sets = read_analysis_sets(replace(settings, calibration=None))
    sides = [{content_hash(e) for e in part} for part in (sets.fit, sets.threshold, sets.main("retain").examples)]
    assert [len(side) for side in sides] == [4, 3, 7]
    assert len(set.union(*sides)) == 14
    assert len(read_analysis_sets(replace(settings, calibration=None, seed=5)).main("retain").examples) == 7


def test_of_calibration_rows_none_is_a_test_row_and_those_set_aside_are_preferred(
    settings: AnalyzeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = write(tmp_path / "both.jsonl", rows("retain", 1, 14) + rows("calibration", 3, 26))
    sets = read_analysis_sets(replace(settings, calibration=both))
    assert len(sets.fit) + len(sets.threshold) == 26
    assert len(sets.main("retain").examples) == 14
    more = write(tmp_path / "more.jsonl", rows("calibration", 3, 10))
    beside = read_analysis_sets(replace(settings, calibration=both, also_retain={"more": more}))
    assert len(beside.fit) + len(beside.threshold) == 16
    model = tmp_path / "artifact"
    model.mkdir()
    held_out = [content_hash(example) for example in read_examples(both)[20:32]]
    (model / "d2_manifest.json").write_text(json.dumps({"held_out": held_out}))
    chosen = read_analysis_sets(replace(settings, calibration=both, model=str(model)))
    assert {content_hash(e) for e in (*chosen.fit, *chosen.threshold)} == set(held_out)
    assert "12 calibration rows of" in capsys.readouterr().err
    limited = read_analysis_sets(replace(settings, calibration=both, limit=5))
    assert len(limited.fit) + len(limited.threshold) == 5
    assert [len(named.examples) for named in limited.judged] == [5, 5, 5]


def test_calibration_rows_that_nothing_shows_to_be_unseen_are_said_to_be_so(
    settings: AnalyzeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "so nothing shows that the model was not trained on them"
    model = tmp_path / "artifact"
    model.mkdir()
    read_analysis_sets(replace(settings, model=str(model)))
    assert f"all 26 calibration rows of {settings.calibration}: {model} says of none that it was set aside, {said}" in (
        capsys.readouterr().err
    )
    (model / "d2_manifest.json").write_text(json.dumps({"held_out": ["another", "row"]}))
    sets = read_analysis_sets(replace(settings, model=str(model)))
    assert len(sets.fit) + len(sets.threshold) == 26
    assert f"{settings.calibration}: none of the 2 that unlearn set aside are there, {said}" in capsys.readouterr().err


def test_rows_without_a_prompt_are_counted_and_a_set_without_any_is_refused(settings: AnalyzeSettings, tmp_path: Path) -> None:
    texts = write(tmp_path / "texts.jsonl", [{"text": "it was born."}, {"text": "he was."}])
    with pytest.raises(DataError, match="the set more has no row with a prompt that could be asked"):
        read_analysis_sets(replace(settings, also_forget={"more": texts}))
    mixed = [Example("a", (), "text", "f:1"), Example("b", (Message("user", "What?"),), "it.", "f:2")]
    assert [bool(example.prompt) for example in mixed] == [False, True]
    few = write(tmp_path / "few.jsonl", rows("few", 9, 3))
    with pytest.raises(DataError, match="3 retained rows are too few to fit on one half"):
        read_analysis_sets(replace(settings, calibration=few))


def test_the_gate_s_score_is_what_the_others_are_compared_with(settings: AnalyzeSettings, tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "guarded", 0))
    gate = EnergyGate.calibrate(
        load_model(folder),
        load_tokenizer(folder),
        read_examples(settings.calibration or ""),
        max_false_refusal=0.2,
        max_new_tokens=4,
        score="first-2",
        folder=folder,
    )
    gate.save(folder)
    chosen = replace(
        settings, model=str(folder), original=None, oracle=None, output=str(tmp_path / "out"), limit=6, disturbed=2
    )
    found = read_analysis(run_analyze(chosen))
    assert (found.gate_score, found.reference) == ("first-2", "energy/first-2")
    assert [trial.role for trial in found.models] == ["model"]
    assert {s.index for s in found.models[0].separations if s.ahead == Estimate(0, 0, 0)} >= {"energy/first-2"}


def test_a_model_whose_layers_cannot_be_told_apart_is_tried_without_them(
    settings: AnalyzeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(_: object) -> None:
        raise ModelError("Odd has no list of layers")

    monkeypatch.setattr(analyze_module, "layers_of", refuses)
    chosen = replace(settings, original=None, oracle=None, output=str(tmp_path / "out"), limit=6, disturbed=2)
    (trial,) = read_analysis(run_analyze(chosen)).models
    assert (trial.layers, trial.no_layers) == ((), NO_LAYERS)
    assert "no energies by layer: Odd has no list of layers" in capsys.readouterr().err
    assert 0 <= trial.separations[0].statistics["auroc"].value <= 1
