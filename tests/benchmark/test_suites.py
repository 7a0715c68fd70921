"""The suites' tables, and whole suites on made-up data: the same numbers as the reference's evaluation restated literally."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tiny_models
from benchmark.conftest import World, put_threshold_in_the_middle
from d2unlearn.benchmark import results as benchmark_results
from d2unlearn.benchmark import scoring
from d2unlearn.benchmark.conventions import OPEN_UNLEARNING, OURS, Convention
from d2unlearn.benchmark.loglikelihood import AnswerScores
from d2unlearn.benchmark.metrics import (
    ForgetQuality,
    Membership,
    MetricInputs,
    MetricValue,
    PrivLeak,
    Probability,
    RougeScore,
    SetScores,
    SetValues,
    Utility,
    mean_of_columns,
)
from d2unlearn.benchmark.results import suite_metric
from d2unlearn.benchmark.run import run_benchmark
from d2unlearn.benchmark.semeval import FinalScore, TaskAggregate
from d2unlearn.benchmark.suites import MUSE, SUITES, TOFU, Suite, attacked_sets, chosen
from d2unlearn.benchmark.warnings import suite_warnings
from d2unlearn.cli.main import app
from d2unlearn.config import BenchmarkSettings
from d2unlearn.data.muse import PREFIX, read_muse, with_shots
from d2unlearn.data.records import read_examples
from d2unlearn.data.tofu import read_tofu
from d2unlearn.errors import ArtifactError, DataError
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.metrics import separation
from d2unlearn.metrics.text import Rouge, refuses, repetition, rouge
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.schema import EvaluatedSet, Evaluation, Example, Message, MetricResult
from d2unlearn.serialization import read_evaluation


def settings(world: World, output: Path, **given: Any) -> BenchmarkSettings:
    return BenchmarkSettings(
        **{"model": str(world.knows), "benchmark": "tofu", "output": str(output), "data": str(world.data), **given}
    )


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    """Enough for intervals to be intervals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separation, "SEPARATION_DRAWS", 20)
        patch.setattr(benchmark_results, "SUITE_DRAWS", 20)
        yield


@pytest.fixture(scope="module")
def results(world: World, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The made-up TOFU evaluated: the model that never knew, then the one that knows, in both conventions."""
    folder = tmp_path_factory.mktemp("evaluated")
    never = {"model": str(world.never_knew)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_benchmark(settings(world, folder / "never-theirs", convention="open-unlearning", **never))
        run_benchmark(settings(world, folder / "never-ours", **never))
        for name, convention in (("theirs", "open-unlearning"), ("ours", "d2unlearn")):
            logs = str(folder / f"never-{name}" / "TOFU_EVAL.json")
            run_benchmark(settings(world, folder / name, convention=convention, retain_logs=logs))
    return {name: folder / name for name in ("never-theirs", "never-ours", "theirs", "ours")}


def entries(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "TOFU_EVAL.json").read_text())


# -- the tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_every_metric_reads_sets_of_its_suite_and_metrics_above_it(suite: Suite) -> None:
    seen: list[str] = []
    for key, metric in suite.metrics.items():
        assert set(metric.sets) <= set(suite.sets), key
        above = [getattr(metric, name) for name in ("ratio",) if hasattr(metric, name)]
        if isinstance(metric, PrivLeak):
            above.append(metric.attack)
        if isinstance(metric, Utility):
            above += metric.keys
        if isinstance(metric, TaskAggregate):
            above += [*metric.gone, *metric.kept]
        if isinstance(metric, FinalScore):
            above += [metric.aggregate, metric.membership]
        assert set(above) <= set(seen), key
        assert metric.meaning.strip() == metric.meaning != "", key
        seen.append(key)
    assert set(suite.summary) <= set(suite.metrics)
    assert {suite.kept, *suite.own} - {""} <= set(suite.metrics)


def test_parts_and_attacks_that_were_not_asked_for_are_left_out() -> None:
    small = chosen(MUSE, left_out=["mia_gradnorm", "mia_reference"])
    assert [name for name in small.sets if name.startswith(("scal", "sust"))] == []
    assert [key for key in small.metrics if key.startswith(("scal", "sust", "mia_grad", "mia_ref"))] == []
    large = chosen(MUSE, parts=["scal"])
    assert [name for name in large.sets if name.startswith(("scal", "sust"))] == [f"scal_{fold}" for fold in (1, 2, 3, 4)]
    assert attacked_sets(TOFU) == {"forget", "holdout"}
    assert attacked_sets(MUSE) == {"forget_text", "holdout_text"}


# -- one metric at a time -----------------------------------------------------------------------------------------------


def example(index: int, group: str | None = None) -> Example:
    return Example(f"row-{index}", (Message("user", "q"),), "a", f"rows.jsonl:{index}", group)


def scored(name: str, nll: list[float], *, texts: tuple[str, ...] = (), **more: Any) -> SetScores:
    true = tuple(AnswerScores(3, each, -1.0, -1.0, min_k=2 * each) for each in nll)
    return SetScores(name, "forget", tuple(example(i) for i in range(len(nll))), true, texts=texts, **more)


def inputs_of(*sets: SetScores, convention: Any = OURS, **more: Any) -> MetricInputs:
    return MetricInputs({each.name: each for each in sets}, convention, **more)


def test_a_probability_of_several_answers_is_their_mean_and_keeps_each() -> None:
    others = {
        "perturbed_answer": tuple((AnswerScores(1, a, 0, 0), AnswerScores(1, b, 0, 0)) for a, b in ((0.0, 1.0), (2.0, 2.0)))
    }
    found = Probability("s", "perturbed_answer").compute(inputs_of(scored("s", [0.1, 0.2], others=others)))
    expected = [(1 + math.exp(-1)) / 2, math.exp(-2)]
    assert found.value == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.records[0] == {"prob": [1.0, math.exp(-1.0)], "avg_loss": [0.0, 1.0]}


def test_what_cannot_be_scored_is_left_out_of_the_mean_counted_and_never_zero() -> None:
    one = inputs_of(scored("s", [0.0, math.nan, 2.0]))
    one = replace(one, computed={"p": Probability("s", better="lower").compute(one)})
    suite = replace(TOFU, metrics={"p": Probability("s", better="lower")})
    metric = suite_metric("p", suite, one, seed=0)
    assert metric.value == pytest.approx((1 + math.exp(-2)) / 2, rel=1e-12)
    assert (metric.n, metric.unscored, metric.reason) == (2, 1, "")
    nothing = Probability("s", better="lower").compute(inputs_of(scored("s", [math.nan])))
    assert math.isnan(nothing.value)
    assert nothing.reason == "no answer of s could be scored"


def test_an_attack_without_held_out_rows_says_why_there_is_no_number() -> None:
    attack = Membership("loss", "forget", "holdout")
    found = attack.compute(
        inputs_of(scored("forget", [1.0]), SetScores("holdout", "retain", missing="there are no held-out rows"))
    )
    assert math.isnan(found.value)
    assert found.reason == "there are no held-out rows"
    known = attack.compute(inputs_of(scored("forget", [0.1, 0.2]), scored("holdout", [0.3, 0.15])))
    assert known.value == 0.75
    assert [record["score"] for record in known.parts["holdout"].records] == [0.3, 0.15]


def test_privleak_and_forget_quality_need_the_retain_models_logs() -> None:
    attack = Membership("loss", "forget", "holdout")
    base = inputs_of(scored("forget", [0.1, 0.2]), scored("holdout", [0.3, 0.15]))
    with_auc = replace(
        base, computed={"mia_loss": attack.compute(base), "ratio": Probability("forget", better="lower").compute(base)}
    )
    leak, quality = PrivLeak("mia_loss"), ForgetQuality("ratio", better="higher")
    assert leak.compute(with_auc).reason == "needs the retain model's logs (--retain-logs)"
    assert quality.compute(with_auc).reason == "needs the retain model's logs (--retain-logs)"
    assumed = leak.compute(replace(with_auc, convention=OPEN_UNLEARNING))
    assert assumed.value == pytest.approx((0.25 - 0.5) / 0.5 * 100, rel=1e-8)
    partly = replace(with_auc, retain_logs={"mia_loss": {"agg_value": 0.5}})
    assert leak.compute(partly).value == pytest.approx(-50.0, rel=1e-12)
    assert quality.compute(partly).reason == "the retain model's logs hold no ratio"


def test_utility_is_nothing_without_one_of_its_parts_and_zero_with_one_at_zero() -> None:
    def found(values: list[float]) -> MetricValue:
        return MetricValue((SetValues("s", np.array(values)),), mean_of_columns)

    utility = Utility(("a", "b"), better="higher")
    base = inputs_of(scored("s", [0.0, 0.0]))
    assert utility.compute(replace(base, computed={"a": found([0.5]), "b": found([0.25])})).value == pytest.approx(
        1 / 3, rel=1e-12
    )
    assert utility.compute(replace(base, computed={"a": found([0.5]), "b": found([0.0])})).value == 0.0
    missing = utility.compute(replace(base, computed={"a": found([0.5]), "b": MetricValue(reason="not there")}))
    assert math.isnan(missing.value)
    assert missing.reason == "not there"


def test_intervals_are_drawn_over_authors_where_rows_come_in_groups() -> None:
    """Twenty equal rows an author are one observation an author: the interval is as wide as for the authors alone."""
    authors = np.array([0.2, 0.9, 0.4, 0.6])
    rows = tuple(example(i, f"author-{i // 20}") for i in range(80))
    probability = Probability("s", better="lower")
    suite = replace(TOFU, metrics={"p": probability})

    def interval(values: np.ndarray, examples: tuple[Example, ...]) -> MetricResult:
        true = tuple(AnswerScores(1, -math.log(v), 0, 0) for v in values)
        one = inputs_of(SetScores("s", "forget", examples, true))
        return suite_metric("p", suite, replace(one, computed={"p": probability.compute(one)}), seed=3)

    clustered = interval(np.repeat(authors, 20), rows)
    alone = interval(authors, tuple(example(i) for i in range(4)))
    as_if_independent = interval(np.repeat(authors, 20), tuple(example(i) for i in range(80)))
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high), rel=1e-12)
    assert as_if_independent.high - as_if_independent.low < 0.5 * (clustered.high - clustered.low)
    assert clustered.low <= clustered.value <= clustered.high


def test_repetition_is_the_share_of_runs_of_words_that_came_before() -> None:
    assert repetition("a b c d e") == 0.0
    assert repetition("a b c a b c a b c") == pytest.approx(1 - 3 / 7, rel=1e-12)
    assert repetition("no " * 50) == pytest.approx(1 - 1 / 48, rel=1e-12)
    assert math.isnan(repetition("a b"))


def test_refusals_in_words_are_told_by_how_they_begin() -> None:
    assert refuses("I’m  not sure about that.") == 1.0
    assert refuses("I don't know.") == 1.0
    assert refuses("Basil said: I don't know.") == 0.0
    assert refuses("") == 0.0


def test_rouge_stems_only_where_asked_and_equal_texts_need_no_counting() -> None:
    assert rouge("he walked in cities", "she walks in a city") == Rouge(0.75, pytest.approx(2 * 0.75 * 0.6 / 1.35), 0.75)
    assert rouge("he walked in cities", "she walks in a city", stemmer=False).rougeL_recall == 0.25
    assert rouge("it is", "it is") == Rouge(1.0, 1.0, 1.0)
    assert all(math.isnan(each) for each in rouge("…", "…"))


# -- TOFU ---------------------------------------------------------------------------------------------------------------


def test_the_whole_suite_has_the_numbers_of_the_reference_restated_literally(
    world: World, results: Mapping[str, Path], restated: ModuleType
) -> None:
    ratios = [entry["score"] for entry in entries(results["never-theirs"])["forget_truth_ratio"]["value_by_index"].values()]
    found = entries(results["theirs"])
    model, tokenizer = load_model(world.knows), load_tokenizer(world.knows)
    splits = {"forget": "forget10_perturbed", "retain": "retain_perturbed", "holdout": "holdout10"}
    splits |= {"real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}
    sets = {name: read_tofu(split, world.data) for name, split in splits.items()}
    reference = restated.Reference(model, tokenizer, lambda question: f"<bos><q>{question}<a>")
    expected = restated.evaluate(reference, sets, ratios)
    assert set(found) - set(expected) == {"mia_gradnorm", "privleak"}
    for key, entry in expected.items():
        assert found[key]["agg_value"] == pytest.approx(float(entry["agg_value"]), abs=1e-4), key
    for key in ("forget_Q_A_PERT_Prob", "retain_Q_A_PARA_Prob"):
        for index, each in enumerate(expected[key]["scores"]):
            assert found[key]["value_by_index"][str(index)]["avg_loss"] == pytest.approx(each["avg_loss"], abs=1e-4)
    for key in ("forget_Q_A_ROUGE", "wf_Q_A_ROUGE"):
        recalls = [entry["rougeL_recall"] for entry in found[key]["value_by_index"].values()]
        assert recalls == pytest.approx(expected[key]["scores"], abs=1e-12)
    assert 0 < found["forget_Q_A_ROUGE"]["agg_value"] < 1  # the model knows some and not all: the test means something
    assert found["privleak"]["agg_value"] == pytest.approx(
        ((1 - found["mia_min_k"]["agg_value"]) / (1 - entries(results["never-theirs"])["mia_min_k"]["agg_value"]) - 1) * 100,
        abs=1e-6,
    )


def test_ours_differs_where_the_conventions_do_and_nowhere_else(results: Mapping[str, Path]) -> None:
    ours, theirs = entries(results["ours"]), entries(results["theirs"])
    assert set(ours) - set(theirs) == {"d2unlearn"}
    same = ["forget_Q_A_Prob", "forget_truth_ratio", "ra_Q_A_Prob_normalised", "mia_loss", "mia_zlib", "model_utility"]
    for key in same:
        assert ours[key]["agg_value"] == pytest.approx(theirs[key]["agg_value"], abs=1e-5), key
    by_hand = json.loads((results["ours"] / "evaluation.json").read_text())
    forget = next(each for each in by_hand["sets"] if each["name"] == "forget")
    strengths = [e["scores"]["extraction_strength"] for e in forget["examples"]]
    assert ours["extraction_strength"]["agg_value"] == pytest.approx(np.mean(strengths), abs=1e-12)
    assert ours["extraction_strength"]["agg_value"] != pytest.approx(theirs["extraction_strength"]["agg_value"], abs=1e-3)


def test_our_result_file_says_what_each_number_is(results: Mapping[str, Path], world: World) -> None:
    result = read_evaluation(results["ours"] / "evaluation.json")
    assert (result.benchmark, result.convention) == ("tofu", "d2unlearn")
    assert read_evaluation(results["theirs"] / "evaluation.json").convention == "open-unlearning"
    metrics = {metric.name: metric for metric in result.suite}
    expected = chosen(TOFU, left_out=["mia_reference"])
    assert list(metrics) == list(expected.metrics)
    for name, metric in metrics.items():
        assert metric.better == expected.metrics[name].better
        assert metric.low <= metric.high, name
        assert metric.n > 0, name
    assert metrics["forget_Q_A_Prob"].n == 6
    assert metrics["mia_loss"].n == 6 + 5
    assert metrics["model_utility"].n == 5 + 4 + 4
    forget = next(each for each in result.sets if each.name == "forget")
    examples = read_examples(world.data / "forget10_perturbed.jsonl")
    assert [each.example_id for each in forget.examples] == [each.example_id for each in examples]
    assert {"forget_truth_ratio", "mia_min_k", "mia_gradnorm", "repetition", "refusal_rate"} <= set(forget.examples[0].scores)
    directions = {metric.name: metric.better for metric in forget.metrics}
    assert (directions["rouge_l_recall"], directions["refusal_rate"], directions["token_entropy"]) == (
        "lower",
        "higher",
        "higher",
    )
    energies = [each for each in result.separation if each.name.startswith("auroc_answer_energy_forget_vs")]
    assert len(energies) == 4


def test_knowing_shows_in_every_metric_of_the_forget_set(results: Mapping[str, Path]) -> None:
    knows, never = entries(results["ours"]), entries(results["never-ours"])
    for key in ("forget_Q_A_Prob", "forget_Q_A_ROUGE", "extraction_strength", "exact_memorization", "mia_loss", "mia_min_k"):
        assert knows[key]["agg_value"] > never[key]["agg_value"] + 0.05, key
    assert never["forget_quality"]["agg_value"] is None
    assert 0 < knows["forget_quality"]["agg_value"] <= 1


def test_a_finished_result_is_not_computed_again_and_another_is_not_overwritten(
    world: World, results: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "score_answers", lambda *_, **__: pytest.fail("computed again"))
    done = settings(world, results["never-ours"], model=str(world.never_knew))
    before = (results["never-ours"] / "evaluation.json").read_bytes()
    assert run_benchmark(done) == results["never-ours"] / "evaluation.json"
    assert (results["never-ours"] / "evaluation.json").read_bytes() == before
    for changed in ({"convention": "open-unlearning"}, {"limit": 2}, {"question_key": "paraphrased_question"}, {"seed": 1}):
        with pytest.raises(ArtifactError, match="holds the result of other inputs or settings"):
            run_benchmark(replace(done, **changed))


def test_a_run_that_was_killed_goes_on_and_ends_the_same(
    world: World, results: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "again"
    scored_rows: list[int] = []
    whole = scoring.score_answers

    def counted(model: Any, requests: Any, *rest: Any, **options: Any) -> Any:
        scored_rows.append(len(requests))
        return whole(model, requests, *rest, **options)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "score_answers", counted)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "gradient_norms", killed)
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(settings(world, output))
    assert not output.exists()
    assert (tmp_path / "again.partial" / "results.jsonl").stat().st_size > 0
    first = sum(scored_rows)
    run_benchmark(replace(settings(world, output), retain_logs=str(results["never-ours"])))
    assert 0 < first < sum(scored_rows)
    rows = {"forget": 6 * 5, "retain": 5 * 5, "real_authors": 4 * 4, "world_facts": 4 * 4, "holdout": 5}
    assert sum(scored_rows) == sum(rows.values())  # no answer was scored a second time
    assert entries(output) == entries(results["ours"])
    assert not (tmp_path / "again.partial").exists()


def test_equal_rows_are_scored_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for file in world.data.iterdir():
        lines = file.read_text().splitlines(keepends=True)
        (data / file.name).write_text(lines[0] * 3)
    scored_rows: list[int] = []
    whole = scoring.score_answers
    monkeypatch.setattr(
        scoring,
        "score_answers",
        lambda model, requests, *rest, **options: (
            scored_rows.append(len(requests)),
            whole(model, requests, *rest, **options),
        )[1],
    )
    run_benchmark(settings(world, tmp_path / "o", data=str(data), gradient_norm=False))
    assert scored_rows == [5, 5, 4, 4, 1]


def test_without_held_out_rows_the_attacks_say_so_and_the_rest_is_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for file in world.data.iterdir():
        if file.stem != "holdout10":
            (data / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(scoring, "gradient_norms", lambda *_: pytest.fail("no attack can use them"))
    given = {"data": str(data), "reference_model": str(world.never_knew)}
    result = read_evaluation(run_benchmark(settings(world, tmp_path / "o", **given)))
    metrics = {metric.name: metric for metric in result.suite}
    for attack in ("loss", "zlib", "reference", "min_k", "min_k_plus_plus", "gradnorm"):
        assert metrics[f"mia_{attack}"].reason == "there are no held-out rows (holdout10)"
        assert math.isnan(metrics[f"mia_{attack}"].value)
    assert metrics["privleak"].reason == "there are no held-out rows (holdout10)"  # logs would not help
    assert metrics["model_utility"].n == 13
    assert entries(tmp_path / "o")["mia_loss"]["agg_value"] is None
    (data / "retain_perturbed.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no retain_perturbed\.jsonl"):
        run_benchmark(settings(world, tmp_path / "p", data=str(data)))


def test_the_reference_attack_is_the_difference_of_two_models_losses(world: World, tmp_path: Path) -> None:
    given = {"reference_model": str(world.never_knew), "gradient_norm": False}
    run_benchmark(settings(world, tmp_path / "o", **given))
    run_benchmark(settings(world, tmp_path / "n", model=str(world.never_knew), gradient_norm=False))
    found, never = entries(tmp_path / "o"), entries(tmp_path / "n")
    assert "mia_gradnorm" not in found
    for side in ("forget", "holdout"):
        for index, record in found["mia_reference"][side]["value_by_index"].items():
            losses = [each["mia_loss"][side]["value_by_index"][index]["score"] for each in (found, never)]
            assert record["score"] == pytest.approx(losses[0] - losses[1], abs=1e-5)


def test_paraphrased_questions_are_asked_of_forget_and_retained_rows_only(world: World, tmp_path: Path) -> None:
    path = run_benchmark(settings(world, tmp_path / "o", question_key="paraphrased_question", gradient_norm=False))
    sets = {each.name: each for each in read_evaluation(path).sets}
    rows = read_examples(world.data / "forget10_perturbed.jsonl")
    assert [each.question for each in sets["forget"].examples] == [row.extra["paraphrased_question"] for row in rows]
    plain = read_examples(world.data / "world_facts_perturbed.jsonl")
    assert [each.question for each in sets["world_facts"].examples] == [row.question for row in plain]


@pytest.mark.parametrize("convention", ["d2unlearn", "open-unlearning"])
def test_behind_a_gate_everything_is_measured_twice_and_generated_once(
    world: World, artifact: Path, results: Mapping[str, Path], tmp_path: Path, convention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated: list[int] = []
    whole = scoring.greedy_answers
    monkeypatch.setattr(
        scoring,
        "greedy_answers",
        lambda model, wanted, **more: (generated.append(len(wanted)), whole(model, wanted, **more))[1],
    )
    given = {"model": str(artifact), "convention": convention, "gradient_norm": False}
    result = read_evaluation(run_benchmark(settings(world, tmp_path / "o", **given)))
    forget = next(each for each in result.sets if each.name == "forget")
    refused = [each for each in forget.examples if each.refused]
    assert len(refused) == 3
    assert {each.guarded_answer for each in refused} == {"he is"}
    for each in forget.examples:
        if not each.refused:
            assert each.guarded_answer == each.raw_answer  # read off the guarded run, not generated again
    assert sum(generated) == sum(bool(each.refused) for one in result.sets for each in one.examples)
    name = "theirs" if convention == "open-unlearning" else "ours"
    raw = read_evaluation(results[name] / "evaluation.json")
    texts = [[each.raw_answer for each in one.examples] for one in (raw.sets[0], forget)]
    assert texts[0] == texts[1]
    metrics = {metric.name: metric for metric in forget.metrics}
    assert (metrics["guarded_refusal_rate"].value, metrics["guarded_refusal_rate"].better) == (0.5, "higher")
    told = [rouge(each.answer, str(each.guarded_answer)).rougeL_recall for each in forget.examples]
    assert metrics["guarded_rouge_l_recall"].value == pytest.approx(np.mean(told), rel=1e-12)
    assert entries(tmp_path / "o")["forget_Q_A_ROUGE"] == entries(results[name])["forget_Q_A_ROUGE"]  # raw, as they count
    kept = next(each for each in result.sets if each.name == "retain")
    directions = {metric.name: metric.better for metric in kept.metrics}
    assert directions["guarded_refusal_rate"] == "lower"
    suite = {metric.name: metric for metric in result.suite}
    generated_ones = [key for key, metric in TOFU.metrics.items() if isinstance(metric, RougeScore | Utility)]
    assert [name for name in suite if name.startswith("guarded_")] == [f"guarded_{key}" for key in generated_ones]
    assert suite["guarded_forget_Q_A_ROUGE"].value == pytest.approx(metrics["guarded_rouge_l_recall"].value, rel=1e-12)
    assert (suite["guarded_forget_Q_A_ROUGE"].better, suite["guarded_forget_Q_A_ROUGE"].n) == ("lower", 6)
    nine = TOFU.metrics["model_utility"].keys  # type: ignore[attr-defined]
    behind = [suite.get(f"guarded_{key}", suite[key]).value for key in nine]
    assert suite["guarded_model_utility"].value == pytest.approx(len(nine) / sum(1 / value for value in behind), rel=1e-12)
    assert suite["guarded_model_utility"].low <= suite["guarded_model_utility"].value <= suite["guarded_model_utility"].high


def test_the_command_line_runs_a_benchmark_and_names_what_it_shows(world: World, tmp_path: Path) -> None:
    given = ["evaluate", "--model", str(world.knows), "--benchmark", "tofu", "--forget-split", "forget10"]
    given += ["--data", str(world.data), "--output", str(tmp_path / "o"), "--no-gradient-norm", "--limit", "3"]
    shown = CliRunner().invoke(app, [*given, "--convention", "open-unlearning"])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert "tofu, counted by the convention open-unlearning" in lines
    assert any(line.startswith("  forget_quality") and "needs the retain model's logs" in line for line in lines)
    assert any(line.startswith("  model_utility") and "higher is better" in line for line in lines)
    files = sorted(path.name for path in (tmp_path / "o").iterdir())
    assert files == ["TOFU_EVAL.json", "TOFU_SUMMARY.json", "d2_manifest.json", "evaluation.json"]
    summary = json.loads((tmp_path / "o" / "TOFU_SUMMARY.json").read_text())
    assert {"forget_Q_A_Prob", "model_utility", "privleak"} <= set(summary)
    assert "forget_quality" not in summary


# -- MUSE ---------------------------------------------------------------------------------------------------------------

SPLITS = {
    "knowmem": ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"),
    "verbmem": ("forget",),
    "privleak": ("forget", "retain", "holdout"),
    "scal": ("forget_1", "forget_2", "forget_3", "forget_4"),
    "sust": ("forget_1", "forget_2", "forget_3", "forget_4"),
}


@pytest.fixture
def muse(tmp_path: Path) -> Path:
    """A MUSE folder of the hub's schema: question and answer; prompt and gt; text."""
    rng = np.random.default_rng(7)

    def words(low: int, high: int) -> str:
        return " ".join(
            str(word) for word in rng.choice(["he", "she", "was", "born", "in", "Paris", "Berlin"], rng.integers(low, high))
        )

    def row(part: str) -> dict[str, str]:
        if part == "knowmem":
            return {"question": f"What is {words(1, 4)}", "answer": words(1, 4)}
        return {"prompt": words(3, 6), "gt": words(4, 9)} if part == "verbmem" else {"text": words(6, 15)}

    for part, splits in SPLITS.items():
        (tmp_path / "muse" / part).mkdir(parents=True)
        for split in splits:
            count = 2 if split.endswith("icl") else 4
            text = "".join(json.dumps(row(part)) + "\n" for _ in range(count))
            (tmp_path / "muse" / part / f"{split}.jsonl").write_text(text)
    return tmp_path / "muse"


def test_muse_is_read_by_part_and_split_and_says_what_is_missing(muse: Path) -> None:
    (passage, *_) = read_muse("verbmem", "forget", folder=muse)
    row = json.loads((muse / "verbmem" / "forget.jsonl").read_text().splitlines()[0])
    assert (passage.prompt, passage.answer, passage.extra[PREFIX]) == ((), row["gt"], row["prompt"])
    questions = read_muse("knowmem", "forget_qa", folder=muse)
    shots = read_muse("knowmem", "forget_qa_icl", folder=muse)
    asked = with_shots(questions, shots)[0]
    assert [turn.role for turn in asked.prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert asked.prompt[1].content == shots[0].answer
    assert asked.question == questions[0].question
    with pytest.raises(DataError, match=r"privleak has no validation\.jsonl; splits there: forget, holdout, retain"):
        read_muse("privleak", "validation", folder=muse)
    with pytest.raises(DataError, match="MUSE has no corpus songs; choose news or books"):
        read_muse("raw", "forget", corpus="songs", folder=muse)
    (muse / "verbmem" / "forget.jsonl").write_text('{"prompt": "he was"}\n')
    with pytest.raises(DataError, match=r"forget\.jsonl:1: gt should be a text"):
        read_muse("verbmem", "forget", folder=muse)


def test_muse_whole_with_its_folds(world: World, muse: Path, tmp_path: Path) -> None:
    given = {"benchmark": "muse", "data": str(muse), "parts": ["scal", "sust"]}
    path = run_benchmark(settings(world, tmp_path / "o", convention="open-unlearning", **given))
    result = read_evaluation(path)
    metrics = {metric.name: metric for metric in result.suite}
    assert list(metrics) == list(chosen(MUSE, parts=["scal", "sust"], left_out=["mia_reference"]).metrics)
    assert all(metric.n > 0 for metric in metrics.values())
    found = json.loads((tmp_path / "o" / "MUSE_EVAL.json").read_text())
    assert [key for key in found if key.startswith(("scal", "sust"))] == []  # not open-unlearning's
    assert set(json.loads((tmp_path / "o" / "MUSE_SUMMARY.json").read_text())) == set(MUSE.summary) - {"mia_reference"}
    record = found["forget_knowmem_ROUGE"]["value_by_index"]["0"]
    shots = read_muse("knowmem", "forget_qa_icl", folder=muse)
    question = read_muse("knowmem", "forget_qa", folder=muse)[0]
    assert record["input"].startswith(f"{shots[0].question}{shots[0].answer}")
    assert record["ground_truth"] == question.answer
    assert "\n\n" not in record["generation"]
    verbatim = found["forget_verbmem_ROUGE"]["value_by_index"]["1"]
    passage = read_muse("verbmem", "forget", folder=muse)[1]
    assert (verbatim["input"], verbatim["ground_truth"]) == (passage.extra[PREFIX], passage.answer)
    sets = {each.name: each for each in result.sets}
    assert sets["scal_2"].kind == "forget"
    values = [each.scores["scal_2_Prob"] for each in sets["scal_2"].examples]
    assert metrics["scal_2_Prob"].value == pytest.approx(np.mean(values), rel=1e-12)


def test_muses_own_rouge_is_not_stemmed(world: World, muse: Path, tmp_path: Path) -> None:
    """Ours as MUSE's authors count it, the other as open-unlearning does: the same text, two scores."""
    lines = (muse / "knowmem" / "forget_qa.jsonl").read_text().splitlines()
    (muse / "knowmem" / "forget_qa.jsonl").write_text(lines[0] + "\n")
    found = {}
    for convention in ("d2unlearn", "open-unlearning"):
        run_benchmark(
            settings(world, tmp_path / convention, benchmark="muse", data=str(muse), convention=convention, gradient_norm=False)
        )
        record = json.loads((tmp_path / convention / "MUSE_EVAL.json").read_text())["forget_knowmem_ROUGE"]["value_by_index"][
            "0"
        ]
        found[convention] = (
            record["rougeL_f1"],
            rouge(record["ground_truth"], record["generation"], stemmer=convention != "d2unlearn"),
        )
    for score, expected in found.values():
        assert score == pytest.approx(expected.rougeL_f1, abs=1e-12)


def test_behind_a_gate_answers_are_cut_at_the_stops_like_raw_ones(
    artifact: Path, muse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(artifact, tmp_path / "artifact")
    asked = with_shots(read_muse("knowmem", "retain_qa", folder=muse), read_muse("knowmem", "retain_qa_icl", folder=muse))
    prompts = [each.prompt for each in asked]
    put_threshold_in_the_middle(folder, prompts, max_new_tokens=32)
    whole = GuardedModel.from_pretrained(folder, device="cpu").answer(prompts, max_new_tokens=32)
    stop = next(answer.text.split()[1] for answer in whole if not answer.refused)
    knowmem = {name: replace(spec, stops=(stop,)) for name, spec in MUSE.sets.items() if name.endswith("knowmem")}
    monkeypatch.setitem(SUITES, "muse", replace(MUSE, sets={**MUSE.sets, **knowmem}))
    given = {"model": str(folder), "benchmark": "muse", "data": str(muse), "gradient_norm": False}
    result = read_evaluation(run_benchmark(BenchmarkSettings(output=str(tmp_path / "o"), **given)))
    examples = next(each for each in result.sets if each.name == "retain_knowmem").examples
    assert [each.refused for each in examples] == [answer.refused for answer in whole]
    for each, answer in zip(examples, whole, strict=True):
        assert each.guarded_answer == answer.text.split(stop)[0].strip()
        assert answer.refused or each.guarded_answer == each.raw_answer
    suite = {metric.name: metric.value for metric in result.suite}
    told = [rouge(each.answer, str(each.guarded_answer), stemmer=False).rougeL_f1 for each in examples]
    assert suite["guarded_retain_knowmem_ROUGE"] == pytest.approx(np.mean(told), rel=1e-12)


# -- warnings -----------------------------------------------------------------------------------------------------------


def evaluated(name: str, kind: Any, **values: float) -> EvaluatedSet:
    metrics = tuple(MetricResult(key, value, value, value, 10, 0, "neither") for key, value in values.items())
    return EvaluatedSet(name, kind, metrics, ())


def warned_of(computed: Any, sets: list[EvaluatedSet], convention: Convention, logs: Any) -> tuple[str, ...]:
    return suite_warnings(TOFU, MetricInputs({}, convention, logs, computed), sets)


def value(number: float) -> MetricValue:
    return MetricValue((SetValues("s", np.array([number])),), mean_of_columns)


def test_a_sound_model_is_not_warned_of() -> None:
    found = {"model_utility": value(0.58), "mia_loss": value(0.52), "forget_Q_A_Prob": value(0.1)}
    reference = {"model_utility": {"agg_value": 0.6}, "mia_loss": {"agg_value": 0.5}, "forget_Q_A_Prob": {"agg_value": 0.12}}
    sets = [evaluated("retain", "retain", token_entropy=0.95, repetition=0.02, guarded_refusal_rate=0.01)]
    assert warned_of(found, sets, OPEN_UNLEARNING, reference) == ()


@pytest.mark.parametrize(
    ("found", "sets", "reference", "said"),
    [
        (
            {"model_utility": 0.3},
            [],
            {"model_utility": 0.6},
            "utility is gone: model_utility is 0.300, the retain model's 0.600",
        ),
        ({"model_utility": 0.1}, [], {}, "utility is gone: model_utility is 0.100"),
        ({"mia_min_k": 0.2}, [], {"mia_min_k": 0.5}, "gives the unlearning away: mia_min_k 0.200 (aim 0.500)"),
        ({"mia_loss": 0.3}, [], {}, "mia_loss 0.300 (aim 0.500)"),
        ({"forget_Q_A_Prob": 1e-6}, [], {"forget_Q_A_Prob": 0.1}, "over-unlearned"),
        ({}, [evaluated("forget", "forget", token_entropy=0.3)], {}, "answers on forget repeat themselves"),
        ({}, [evaluated("retain", "retain", repetition=0.9)], {}, "answers on retain repeat themselves"),
        ({}, [evaluated("retain", "retain", guarded_refusal_rate=0.4)], {}, "over-refusal: the gate refuses 40% of retain"),
        ({}, [evaluated("retain", "retain", refusal_rate=0.5)], {}, "over-refusal: the model itself refuses 50% of retain"),
    ],
)
def test_a_number_that_looks_good_because_the_model_is_broken_is_warned_of(
    found: dict[str, float], sets: list[EvaluatedSet], reference: dict[str, float], said: str
) -> None:
    logged = {key: {"agg_value": each} for key, each in reference.items()}
    (warning,) = warned_of({key: value(each) for key, each in found.items()}, sets, OPEN_UNLEARNING, logged)
    assert said in warning


def test_answers_that_became_poorer_than_the_retain_models_are_said() -> None:
    """Its two answers have an entropy of 1 and of log 2 / log 4 = 0.5; one word alone has none."""
    texts = ["a b c d", "a a b b", "a"]
    logs = {"forget_Q_A_ROUGE": {"agg_value": 0.1, "value_by_index": {str(i): {"generation": t} for i, t in enumerate(texts)}}}
    (said,) = warned_of({}, [evaluated("forget", "forget", token_entropy=0.67, repetition=0.2)], OPEN_UNLEARNING, logs)
    assert said.startswith(
        "answers on forget are poorer than the retain model's (token entropy 0.67, there 0.75; repetition 0.20)"
    )
    assert warned_of({}, [evaluated("forget", "forget", token_entropy=0.68)], OPEN_UNLEARNING, logs) == ()
    assert warned_of({}, [evaluated("retain", "retain", token_entropy=0.67)], OPEN_UNLEARNING, logs) == ()


def test_refusals_on_the_forget_set_are_what_is_wanted() -> None:
    assert warned_of({}, [evaluated("forget", "forget", guarded_refusal_rate=1.0, refusal_rate=1.0)], OURS, {}) == ()


def test_logs_in_another_convention_or_of_other_rows_are_said() -> None:
    ratio = MetricValue((SetValues("forget", np.array([1.0, 2.0])),), mean_of_columns, records=({"score": 1.0}, {"score": 2.0}))
    logs = {"forget_truth_ratio": {"agg_value": 1.0, "value_by_index": {"0": {"score": 1.0}}}}
    said = warned_of({"forget_truth_ratio": ratio}, [], OURS, logs)
    assert len(said) == 2
    assert said[0].startswith("the retain model's logs are in the convention open-unlearning")
    assert said[1] == "the retain model's logs hold 1 forgotten examples, this evaluation 2"


def test_many_unscored_examples_are_said() -> None:
    one = evaluated("forget", "forget", token_entropy=0.9)
    rows = tuple(read_example(i) for i in range(10))
    half = replace(one, metrics=(MetricResult("extraction_strength", 0.5, 0.4, 0.6, 5, 5, "lower"),), examples=rows)
    assert warned_of({}, [half], OURS, {}) == ("not scored on forget: extraction_strength 5 of 10",)


def read_example(index: int) -> Any:
    from d2unlearn.schema import ScoredExample

    return ScoredExample(f"row-{index}", "q", "a", "", None, None, None, 0.0, 0.0, {})


def test_the_tiny_model_is_warned_of_where_it_is_worth_nothing(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "random"
    tokenizer = tiny_models.tokenizer()
    tiny_models.llama(vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    result: Evaluation = read_evaluation(run_benchmark(settings(world, tmp_path / "o", model=str(folder), gradient_norm=False)))
    assert result.warnings[0].startswith("utility is gone: model_utility is 0.0")
