"""LUME and Years: the sets, the kinds of metric by hand, and whole suites on a few rows and tiny untaught models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

import tiny_models
from d2unlearn.attacks.relearned_rows import divided, named_halves
from d2unlearn.benchmark.choices import ChoiceAccuracy, at_chance, right_choice
from d2unlearn.benchmark.conventions import OURS, SEMEVAL
from d2unlearn.benchmark.datasets import load_sets
from d2unlearn.benchmark.loglikelihood import AnswerScores
from d2unlearn.benchmark.metrics import MetricInputs, SetScores
from d2unlearn.benchmark.run import run_benchmark
from d2unlearn.benchmark.suites import LUME, YEARS
from d2unlearn.benchmark.warnings import suite_warnings
from d2unlearn.config import BenchmarkSettings
from d2unlearn.data.lume import read_lume
from d2unlearn.data.muse import PREFIX
from d2unlearn.data.years import WRONG_CHOICES, read_years
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.generation.guarded import Answer
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.schema import Example, MetricResult
from d2unlearn.serialization import read_evaluation


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lume_rows(kind: str, tasks: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for task in tasks:
        document = f'"{kind}-{task}"'
        rows += [
            {"id": f"{document}sc1", "input": "he was born in", "output": "a city of France", "task": task},
            {"id": f"{document}qa0", "input": "in a city", "output": "Paris", "task": task},
            {"id": f"{document}qa1", "input": "it is the", "output": "Berlin", "task": task},
        ]
    return [*rows, {"id": "a row of another kind", "input": "it", "output": "is", "task": tasks[0]}]


@pytest.fixture(scope="module")
def lume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lume")
    for kind in ("forget", "retain"):
        write(folder / f"{kind}.jsonl", lume_rows(kind, ["Task1", "Task2", "Task3"]))
    write(folder / "member.jsonl", [{"id": "m", "document": "he was born in Paris"}, {"id": "n", "document": "it is a city"}])
    write(folder / "nonmember.jsonl", [{"id": "o", "document": "she was in Berlin"}])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = tiny_models.tokenizer()
    tiny_models.llama(vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(benchmark: str, model: Path, data: Path, output: Path, **given: Any) -> BenchmarkSettings:
    return BenchmarkSettings(model=str(model), benchmark=benchmark, data=str(data), output=str(output), **given)


# -- LUME ---------------------------------------------------------------------------------------------------------------


def test_a_row_of_lume_is_of_one_task_asked_one_way_and_of_its_document(lume: Path) -> None:
    first, second = read_lume("forget/Task2/qa", lume)
    assert (first.prompt, first.extra[PREFIX], first.answer) == ((), "in a city", "Paris")
    assert first.group == second.group == '"forget-Task2"'
    assert [example.answer for example in read_lume("retain/Task3/sc", lume)] == ["a city of France"]
    assert [example.answer for example in read_lume("member", lume)] == ["he was born in Paris", "it is a city"]
    counts = [len(read_lume(f"forget/{task}/{asked}", lume)) for task in ("Task1", "Task2", "Task3") for asked in ("sc", "qa")]
    assert counts == [1, 2] * 3  # and not the row whose id is of neither kind


def test_a_folder_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    none = tmp_path / "none"
    for suite, files in ((LUME, "forget.jsonl and retain.jsonl"), (YEARS, "T.jsonl and V.jsonl")):
        name = suite.name.lower()
        for data, said in (
            (None, f"needs --data, a folder with {files} (it is on no open hub; docs/evaluation.md)"),
            (str(none), f"needs --data, a folder with {files} ({none} is not there; docs/evaluation.md)"),
            (str(tmp_path / "empty"), f"{tmp_path / 'empty'} has no {files.split()[0]}; splits there: none"),
        ):
            with pytest.raises(DataError, match=f"^.*{re.escape(said)}$"):
                load_sets(suite, BenchmarkSettings(model="m", benchmark=name, data=data, output="o"))


def test_lume_as_the_tasks_own_script_counts_it(lume: Path, model: Path, tmp_path: Path) -> None:
    """Every number from the texts again: plain prompts, greedy, 256 tokens; stemmed ROUGE-L recall, exact match, means."""
    result = read_evaluation(run_benchmark(settings("lume", model, lume, tmp_path / "o", mmlu=0.4)))
    suite = {metric.name: metric for metric in result.suite}
    assert (result.convention, list(suite)) == ("semeval-2025-task-4", list(LUME.metrics))
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    scorer, terms = RougeScorer(["rougeL"], use_stemmer=True), []

    @cache
    def greedy(asked: str) -> str:
        ids = tokenizer(asked, return_tensors="pt").input_ids
        out = loaded.generate(ids, max_new_tokens=256, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=True))

    for kind in ("forget", "retain"):
        for task in ("task1", "task2", "task3"):
            scores: dict[str, list[float]] = {"sc": [], "qa": []}
            for line in (lume / f"{kind}.jsonl").read_text().splitlines():
                row = json.loads(line)
                asked = row["id"][:-1][-2:]
                if row["task"].lower() != task or asked not in scores:
                    continue
                said = greedy(row["input"])
                matches = float(row["output"].strip().lower() == said.strip().lower())
                scores[asked].append(scorer.score(row["output"], said)["rougeL"].recall if asked == "sc" else matches)
            for name, asked in (("regurgitation", "sc"), ("knowledge", "qa")):
                mean = np.mean(scores[asked])
                assert suite[f"{kind}_{task}_{name}"].value == pytest.approx(mean, abs=1e-12), (kind, task, name)
                terms.append(1 - mean if kind == "forget" else mean)
    assert len(terms) == 12
    assert suite["task_aggregate"].value == (0.0 if 0 in terms else pytest.approx(12 / sum(1 / term for term in terms)))
    losses = {}
    for name in ("member", "nonmember"):
        texts = [json.loads(line)["document"] for line in (lume / f"{name}.jsonl").read_text().splitlines()]
        rows = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
        losses[name] = [float(loaded(ids, labels=ids).loss.detach()) for ids in rows]
    auc = np.mean([member < losses["nonmember"][0] for member in losses["member"]])
    assert suite["mia_loss"].value == auc
    assert suite["mia_score"].value == 1 - 2 * abs(auc - 0.5)
    wanted = (suite["task_aggregate"].value + suite["mia_score"].value + 0.4) / 3
    assert suite["final_score"].value == pytest.approx(wanted, rel=1e-12)


def test_what_lume_lacks_is_no_number_and_says_why(lume: Path, model: Path, tmp_path: Path) -> None:
    write(tmp_path / "few" / "forget.jsonl", lume_rows("forget", ["Task1", "Task3"]))
    write(tmp_path / "few" / "retain.jsonl", lume_rows("retain", ["Task1", "Task2", "Task3"]))
    result = read_evaluation(run_benchmark(settings("lume", model, tmp_path / "few", tmp_path / "o", limit=1)))
    suite = {metric.name: metric for metric in result.suite}
    lacking = "the folder has no rows of forget/Task2/sc"
    assert suite["forget_task2_regurgitation"].reason == suite["task_aggregate"].reason == lacking
    assert suite["mia_score"].reason == "the folder has no rows of member"
    assert suite["final_score"].reason.startswith(
        f"{lacking}; the folder has no rows of member; needs the model's accuracy on MMLU"
    )
    assert all(
        math.isnan(suite[name].value) for name in ("forget_task2_knowledge", "task_aggregate", "mia_score", "final_score")
    )
    assert suite["retain_task2_knowledge"].n == 1
    summary = json.loads((tmp_path / "o" / "LUME_SUMMARY.json").read_text())
    assert set(LUME.summary) - set(summary) == {
        *("forget_task2_regurgitation", "forget_task2_knowledge"),
        *("task_aggregate", "mia_loss", "mia_score", "final_score"),
    }


def test_lume_is_counted_in_no_other_way(lume: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"LUME is counted in one way only, semeval-2025-task-4; leave --convention away"):
        run_benchmark(settings("lume", model, lume, tmp_path / "o", convention="open-unlearning"))


@pytest.mark.trains
def test_behind_a_gate_refusals_tell_nothing_and_decide_nothing(lume: Path, artifact: Path, tmp_path: Path) -> None:
    data = tmp_path / "years"
    write_years(data)
    result = read_evaluation(run_benchmark(settings("years", artifact, data, tmp_path / "o")))
    suite = {metric.name: metric for metric in result.suite}
    assert list(suite)[2:] == [f"guarded_{part}_accuracy_refusal_{counts}" for part in "TV" for counts in ("wrong", "guessed")]
    examples = next(each for each in result.sets if each.name == "T").examples
    raw = [each.scores["T_accuracy"] for each in examples]
    for counts, share in (("wrong", 0.0), ("guessed", 0.25)):
        behind = [share if each.refused else value for each, value in zip(examples, raw, strict=True)]
        assert suite[f"guarded_T_accuracy_refusal_{counts}"].value == pytest.approx(np.mean(behind), abs=1e-12)
    result = read_evaluation(run_benchmark(settings("lume", artifact, lume, tmp_path / "p", limit=1)))
    names = [metric.name for metric in result.suite if metric.name.startswith("guarded_")]
    generated = [*(key for key in LUME.metrics if not key.startswith("mia"))]
    assert names == [f"guarded_{key}" for key in generated]
    suite = {metric.name: metric for metric in result.suite}
    guarded = next(each for each in result.sets if each.name == "retain_task1_passages").examples[0]
    told = RougeScorer(["rougeL"], use_stemmer=True).score(guarded.answer, str(guarded.guarded_answer))["rougeL"].recall
    assert suite["guarded_retain_task1_regurgitation"].value == pytest.approx(told, abs=1e-12)


# -- Years --------------------------------------------------------------------------------------------------------------


def write_years(folder: Path) -> None:
    choices = ["a city", "Paris", "Berlin", "France"]
    for part, count in (("T", 5), ("V", 3)):
        asked = [{"question": f"it was {'in ' * i}", "choices": choices, "answer": i % 4} for i in range(count)]
        write(folder / f"{part}.jsonl", asked)


def answer(nll: float, n: int = 1) -> AnswerScores:
    return AnswerScores(n, nll, math.nan, math.nan)


def test_the_right_choice_is_the_likeliest_as_a_whole_text() -> None:
    assert right_choice(answer(1.0), [answer(2.0), answer(3.0)]) == 1.0
    assert right_choice(answer(1.0, n=3), [answer(2.0)]) == 0.0  # 3 nats against 2: length counts
    assert right_choice(answer(1.0), [answer(1.0), answer(1.0), answer(1.0)]) == 0.25  # says nothing: a guess
    assert right_choice(answer(1.0, n=2), [answer(2.0), answer(5.0)]) == 0.5
    assert math.isnan(right_choice(answer(1.0), [answer(math.nan)]))


def test_a_refused_question_counts_as_wrong_or_as_a_guess() -> None:
    examples = tuple(Example(f"{i}", (), "1990", f"{i}") for i in range(4))
    wrong = tuple((answer(nll), answer(9.0), answer(9.0)) for nll in (2.0, 2.0, 0.5, 0.5))  # right, right, not, not
    decisions = tuple(Answer("", refused, math.nan, None, None, 0) for refused in (False, True, False, True))
    scored = SetScores("T", "forget", examples, (answer(1.0),) * 4, {WRONG_CHOICES: wrong}, decisions=decisions)
    inputs = MetricInputs({"T": scored}, OURS)
    raw = ChoiceAccuracy("T", WRONG_CHOICES)
    behind = raw.behind_gate("T_accuracy")
    assert raw.compute(inputs).value == 0.5
    assert behind["T_accuracy_refusal_wrong"].compute(inputs).value == 0.25
    assert behind["T_accuracy_refusal_guessed"].compute(inputs).value == 0.375


def test_years_are_questions_with_the_others_as_wrong_answers(tmp_path: Path) -> None:
    write_years(tmp_path)
    second = read_years("T", tmp_path)[1]
    assert (second.question, second.answer) == ("it was in ", "Paris")
    assert second.extra[WRONG_CHOICES] == ["a city", "Berlin", "France"]
    both = [*read_years("T", tmp_path), *read_years("V", tmp_path)]
    halves = divided("facts T", ["all"] * len(both), named_halves(both), share=0.1, seed=0)
    assert halves == (tuple(range(5)), (5, 6, 7))
    write(tmp_path / "V.jsonl", [{"question": "When?", "choices": ["1990", "1991"], "answer": 2}])
    with pytest.raises(DataError, match=r"V\.jsonl:1: should have choices, a list of texts, and answer, the right one's place"):
        read_years("V", tmp_path)


def test_years_by_likelihood_is_what_each_choice_alone_says(model: Path, tmp_path: Path) -> None:
    write_years(tmp_path / "years")
    result = read_evaluation(run_benchmark(settings("years", model, tmp_path / "years", tmp_path / "o")))
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    right = []
    for example in read_years("T", tmp_path / "years"):
        losses = []
        for choice in (example.answer, *example.extra[WRONG_CHOICES]):  # type: ignore[misc]
            asked = tokenizer.apply_chat_template([{"role": "user", "content": example.question}], tokenize=False)
            ids = tokenizer(f"{asked}<a>{choice}<eos>", add_special_tokens=False, return_tensors="pt").input_ids
            start = len(tokenizer(f"{asked}<a>", add_special_tokens=False).input_ids)
            logits = loaded(ids).logits[0, start - 1 : -1].log_softmax(-1)
            losses.append(-float(logits.detach().gather(1, ids[0, start:, None]).sum()))
        right.append(float(np.argmin(losses) == 0))
    suite: dict[str, MetricResult] = {metric.name: metric for metric in result.suite}
    assert suite["T_accuracy"].value == pytest.approx(np.mean(right), abs=1e-12)
    assert (suite["T_accuracy"].n, suite["V_accuracy"].n, suite["T_accuracy"].better) == (5, 3, "lower")


def test_an_accuracy_that_guessing_gives_is_said_to_show_nothing() -> None:
    assert at_chance(0.25, 100, 0.25)
    assert at_chance(0.33, 100, 0.25)  # 1.96 standard errors of 0.0433
    assert not at_chance(0.34, 100, 0.25)
    examples = tuple(Example(f"{i}", (), "1990", f"{i}") for i in range(64))
    for nll, warned in ((0.5, []), (2.0, ["T_accuracy 0.000 is not above chance, 0.25"])):
        others = {WRONG_CHOICES: ((answer(1.0),) * 3,) * 64}
        sets = {"T": SetScores("T", "forget", examples, (answer(nll),) * 64, others), "V": SetScores("V", "forget")}
        inputs = MetricInputs(sets, OURS)
        inputs = MetricInputs(sets, OURS, computed={"T_accuracy": YEARS.metrics["T_accuracy"].compute(inputs)})
        assert [said.split(":")[0] for said in suite_warnings(YEARS, inputs, [])] == warned


def test_every_set_of_both_is_where_the_readers_look(lume: Path, model: Path, tmp_path: Path) -> None:
    sets = load_sets(LUME, settings("lume", model, lume, tmp_path))
    assert [len(loaded.examples) for loaded in sets] == [1, 2] * 6 + [2, 1]
    assert LUME.convention is SEMEVAL
