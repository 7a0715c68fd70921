"""The runner on a tiny random model: every number from its own full logits, what cannot be scored counted, results kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import tiny_models
from d2unlearn.config import EvaluateSettings
from d2unlearn.data.records import read_examples
from d2unlearn.data.template import Template
from d2unlearn.errors import ArtifactError, ConfigError, DataError
from d2unlearn.evaluation import runner
from d2unlearn.evaluation.runner import evaluate, read_sets, run_evaluate
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.metrics.summary import groups_of, set_metric
from d2unlearn.metrics.text import rouge_l_recall, token_entropy
from d2unlearn.runtime import read_json
from d2unlearn.schema import EvaluatedSet, Evaluation, Example, Message, MetricResult
from d2unlearn.serialization import read_evaluation
from d2unlearn.stats import auroc, bootstrap_interval

WORDS = ["is", "of", "it", "he", "she", "was", "born", "in", "a", "city", "Paris", "Berlin", "France", "Germany"]
LENGTH = 5
"""Tokens of a generated answer at most."""


class Folders(NamedTuple):
    """A model with a gate, the same without, and files of rows."""

    gated: Path
    plain: Path
    forget: Path
    retain: Path
    texts: Path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(seed: int, n: int, *, groups: int | None = None) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = [
        {"question": " ".join(rng.choice(WORDS, size=rng.integers(2, 9))) + "?", "answer": " ".join(rng.choice(WORDS, size=2))}
        for _ in range(n)
    ]
    return rows if groups is None else [row | {"group": f"g{i % groups}"} for i, row in enumerate(rows)]


def known(guarded: GuardedModel, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every other row with the answer that the model gives by itself, so that not all of it is wrong."""
    answers = guarded.answer([row["question"] for row in rows], max_new_tokens=LENGTH)
    return [row | {"answer": answer.text} if i % 2 else row for i, (row, answer) in enumerate(zip(rows, answers, strict=True))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A gate at 30%: of the questions here it refuses some."""
    folder = tmp_path_factory.mktemp("runner")
    tokenizer = tiny_models.tokenizer()
    for name in ("gated", "plain"):
        tiny_models.llama(vocabulary=len(tokenizer)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    calibration = read_examples(write(folder / "calibration.jsonl", questions(9, 40)))
    model = tiny_models.llama(vocabulary=len(tokenizer))
    gate = EnergyGate.calibrate(
        model, tokenizer, calibration, max_false_refusal=0.3, max_new_tokens=LENGTH, refusal_texts=["he was born in"]
    )
    gate.save(folder / "gated")
    forget = write(folder / "forget.jsonl", known(GuardedModel(model, tokenizer, None), questions(1, 12, groups=4)))
    retain = write(folder / "retain.jsonl", questions(2, 11))
    return Folders(folder / "gated", folder / "plain", forget, retain, write(folder / "texts.jsonl", [{"text": "a city"}] * 3))


def settings(folders: Folders, output: Path, *, model: Path | None = None, **changes: Any) -> EvaluateSettings:
    base = EvaluateSettings(
        str(model or folders.gated), str(folders.forget), str(folders.retain), str(output), max_new_tokens=LENGTH, batch_size=4
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def result(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    output = tmp_path_factory.mktemp("result") / "evaluation"
    chosen = settings(folders, output, also_retain={"texts": str(folders.texts)}, label="tiny")
    return read_evaluation(run_evaluate(chosen))


def by_name(evaluation: Evaluation) -> dict[str, EvaluatedSet]:
    return {each.name: each for each in evaluation.sets}


def metric(of: EvaluatedSet, name: str) -> MetricResult:
    (found,) = (each for each in of.metrics if each.name == name)
    return found


@torch.no_grad()
def naive(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> dict[str, float]:
    """One row by the model's own full logits, and a greedy answer token by token."""
    template = Template(tokenizer)
    prompt = template.question_ids(question)
    ids = torch.tensor([[*prompt, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize(answer)), tokenizer.eos_token_id]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
    targets = ids[0, len(prompt) :]
    right = (logits.argmax(-1) == targets).tolist()
    probabilities = logits.softmax(-1)[torch.arange(len(targets)), targets]
    grown = list(prompt)
    while len(grown) < len(prompt) + LENGTH:
        grown.append(int(model(input_ids=torch.tensor([grown])).logits[0, -1].argmax()))
        if grown[-1] == tokenizer.eos_token_id:
            break
    text = tokenizer.decode(grown[len(prompt) :], skip_special_tokens=True).strip()
    energies = -torch.logsumexp(logits, -1)
    return {
        "prompt_energy": float(energies[0]),
        "answer_energy": float(energies.mean()),
        "extraction_strength": max(1 - k / len(right) for k in range(len(right) + 1) if all(right[k:])),
        "exact_memorization": sum(right) / len(right),
        "answer_probability": float(probabilities.prod() ** (1 / len(targets))),
        "exact_memorization_without_end": sum(right[:-1]) / len(right[:-1]),
        "mean_logit": float(logits.mean(-1).mean()),
        "centred_energy": -float(torch.logsumexp(logits - logits.mean(-1, keepdim=True), -1).mean()),
        "entropy": -float((logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()),
        "rouge_l_recall": rouge_l_recall(answer, text),
        "leak_rate": float(rouge_l_recall(answer, text) >= 0.5),
        "token_entropy": token_entropy(text),
    }


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_every_score_of_every_row_is_the_naive_one(result: Evaluation, name: str) -> None:
    tokenizer = tiny_models.tokenizer()
    model = tiny_models.llama(vocabulary=len(tokenizer))
    for example in by_name(result)[name].examples:
        found = {**example.scores, "prompt_energy": example.prompt_energy, "answer_energy": example.answer_energy}
        for key, value in naive(model, tokenizer, example.question, example.answer).items():
            assert found[key] == pytest.approx(value, abs=2e-5, rel=2e-5, nan_ok=True), (example.example_id, key)


def test_the_kl_to_the_original_is_the_naive_one_and_zero_to_the_model_itself(folders: Folders, tmp_path: Path) -> None:
    other = tiny_models.llama(vocabulary=len(tiny_models.tokenizer()), seed=5)
    other.save_pretrained(tmp_path / "other")
    tiny_models.tokenizer().save_pretrained(tmp_path / "other")
    few = settings(folders, tmp_path / "moved", model=folders.plain, original=str(tmp_path / "other"), limit=3)
    moved, still = (
        by_name(read_evaluation(run_evaluate(each)))["retain"]
        for each in (few, replace(few, original=str(folders.plain), output=str(tmp_path / "still")))
    )
    assert (metric(moved, "kl_from_original").better, metric(moved, "kl_from_original").unit) == ("lower", "nats")
    assert metric(still, "kl_from_original").value == pytest.approx(0.0, abs=1e-6)
    model, template = tiny_models.llama(vocabulary=len(tiny_models.tokenizer())), Template(tiny_models.tokenizer())
    for example, row in zip(moved.examples, read_examples(folders.retain)[:3], strict=True):
        tokens = template.tokens(row)
        start = tokens.answer_mask.index(True)
        with torch.no_grad():
            q, p = (
                each(input_ids=torch.tensor([tokens.input_ids])).logits[0].double().log_softmax(-1) for each in (model, other)
            )
        divergence = (p.exp() * (p - q)).sum(-1)[start - 1 : -2]  # the last position predicts nothing, that before it the end
        assert example.scores["kl_from_original"] == pytest.approx(float(divergence.mean()), rel=1e-4)


def test_an_original_of_another_vocabulary_is_none(folders: Folders, tmp_path: Path) -> None:
    tiny_models.llama(vocabulary=50).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="has 50 tokens"):
        run_evaluate(settings(folders, tmp_path / "out", original=str(tmp_path / "other")))


def test_what_the_model_says_by_itself_is_found_to_be_known(result: Evaluation) -> None:
    examples = by_name(result)["forget"].examples
    known_rows, others = ([e.scores["exact_memorization"] for e in examples[start::2]] for start in (1, 0))
    assert sum(share > 0.5 for share in known_rows) >= 2  # the others' text is not tokenised as it was generated
    assert max(others) < 0.5
    assert [e.scores["rouge_l_recall"] for e in examples[1::2] if e.scores["rouge_l_recall"] < 1] == []


def test_rows_keep_their_places_and_order(result: Evaluation, folders: Folders) -> None:
    for name, path in (("forget", folders.forget), ("retain", folders.retain)):
        examples = by_name(result)[name].examples
        assert [e.example_id for e in examples] == [f"{path.name}:{i + 1}" for i in range(len(examples))]
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(e.question, e.answer) for e in examples] == [(row["question"], row["answer"]) for row in rows]


def test_decisions_are_the_gate_s_and_refusals_stand_in_place_of_answers(result: Evaluation, folders: Folders) -> None:
    guarded = GuardedModel.from_pretrained(folders.gated)
    examples = [e for name in ("forget", "retain") for e in by_name(result)[name].examples]
    refused = [example.refused for example in examples]
    assert 0 < sum(map(bool, refused)) < len(refused)
    for example in examples:
        decision = guarded.decide(example.question)
        assert (example.refused, example.gate_score) == (decision.refused, pytest.approx(decision.score, abs=1e-4))
        assert example.guarded_answer == ("he was born in" if example.refused else example.raw_answer)
        (raw,) = guarded.answer([example.question], max_new_tokens=LENGTH, raw=True)
        assert example.raw_answer == raw.text
        assert example.scores["guarded_refusal_rate"] == float(decision.refused)
        recall = rouge_l_recall(example.answer, str(example.guarded_answer))
        assert example.scores["guarded_rouge_l_recall"] == pytest.approx(recall)
        assert example.scores["guarded_leak_rate"] == float(recall >= 0.5)


def test_metrics_are_means_over_scored_rows_with_intervals_and_directions(result: Evaluation) -> None:
    for each in result.sets:
        for found in each.metrics:
            values = np.array([example.scores[found.name] for example in each.examples])
            scored = values[~np.isnan(values)]
            assert (found.n, found.unscored) == (len(scored), len(values) - len(scored))
            if len(scored):
                assert found.value == pytest.approx(scored.mean())
                assert scored.min() - 1e-12 <= found.low <= found.value <= found.high <= scored.max() + 1e-12
    better = {
        name: [metric(each, name).better for each in result.sets[:2]] for name in ("extraction_strength", "token_entropy")
    }
    assert better == {"extraction_strength": ["lower", "higher"], "token_entropy": ["higher", "higher"]}
    assert [metric(each, "guarded_refusal_rate").better for each in result.sets[:2]] == ["higher", "lower"]


def test_a_row_without_a_prompt_has_no_answer_and_is_counted_as_such(result: Evaluation) -> None:
    """Plain text is scored teacher-forced; nothing is generated, and nothing is zero for that."""
    texts = by_name(result)["texts"]
    for example in texts.examples:
        assert (example.raw_answer, example.guarded_answer, example.refused, example.gate_score) == ("", None, None, None)
        assert math.isfinite(example.answer_energy)
    assert metric(texts, "answer_probability").n == 3
    for name in ("rouge_l_recall", "leak_rate", "token_entropy", "guarded_leak_rate", "guarded_refusal_rate"):
        found = metric(texts, name)
        assert (found.n, found.unscored, math.isnan(found.value)) == (0, 3, True)
    assert not any(
        found.name.startswith("auroc_gate") and found.name.endswith("texts") and found.n for found in result.separation
    )


def test_separations_compare_every_forget_set_with_every_retained_one(result: Evaluation) -> None:
    sets = by_name(result)
    found = {each.name: each for each in result.separation}
    for label, field in (("prompt_energy", "prompt_energy"), ("answer_energy", "answer_energy"), ("gate", "gate_score")):
        low, high = ([getattr(e, field) for e in sets[name].examples] for name in ("retain", "forget"))
        one = found[f"auroc_{label}_forget_vs_retain"]
        assert (one.value, one.n) == (pytest.approx(auroc(low, high)), 23)
    assert found["auroc_prompt_energy_forget_vs_texts"].n == 15


def test_the_file_names_model_gate_and_settings(result: Evaluation, folders: Folders) -> None:
    gate = EnergyGate.from_pretrained(folders.gated)
    assert (result.label, result.model) == ("tiny", str(folders.gated))
    assert (result.threshold, result.max_false_refusal, result.score_name) == (gate.threshold, 0.3, gate.score_name)
    assert result.settings["max_new_tokens"] == LENGTH
    assert [(each.name, each.kind) for each in result.sets] == [("forget", "forget"), ("retain", "retain"), ("texts", "retain")]


def test_without_a_gate_raw_metrics_are_the_same_and_guarded_ones_absent(
    result: Evaluation, folders: Folders, tmp_path: Path
) -> None:
    plain = read_evaluation(run_evaluate(settings(folders, tmp_path / "plain", model=folders.plain)))
    assert (plain.label, plain.threshold, plain.score_name) == ("plain", None, None)
    for name, each in by_name(plain).items():
        assert not any(found.name.startswith("guarded") for found in each.metrics)
        with_gate = by_name(result)[name]
        for one, other in zip(each.examples, with_gate.examples, strict=True):
            assert (one.raw_answer, one.refused, one.guarded_answer) == (other.raw_answer, None, None)
        for found in each.metrics:
            assert found.value == pytest.approx(metric(with_gate, found.name).value, abs=1e-6, nan_ok=True)
    assert not any("gate" in found.name for found in plain.separation)


def test_the_batch_size_changes_nothing(result: Evaluation, folders: Folders, tmp_path: Path) -> None:
    alone = read_evaluation(run_evaluate(settings(folders, tmp_path / "alone", batch_size=1)))
    for one, other in zip(alone.sets, result.sets[:2], strict=True):
        for a, b in zip(one.examples, other.examples, strict=True):
            assert (a.raw_answer, a.refused) == (b.raw_answer, b.refused)
            assert a.scores == pytest.approx(dict(b.scores), abs=2e-5, nan_ok=True)


def test_intervals_of_grouped_rows_draw_whole_groups() -> None:
    """Of two groups that are alike every draw has the same mean; of one group no spread is told, so rows are drawn."""
    examples = [Example(f"e{i}", (Message("user", "Q"),), "A", "made up", group=f"g{i // 2}") for i in range(4)]
    values = [0.1, 0.9, 0.1, 0.9]
    grouped = set_metric("answer_probability", "retain", values, groups_of(examples), 0)
    assert (grouped.low, grouped.high) == (pytest.approx(0.5), pytest.approx(0.5))
    one = [replace(example, group="g") for example in examples]
    assert (groups_of(one), groups_of([*examples, replace(one[0], group=None)])) == (None, None)
    apart = set_metric("answer_probability", "retain", values, groups_of(one), 0)
    assert apart.low < apart.value < apart.high


def test_a_share_of_none_or_all_has_the_exact_interval() -> None:
    none, all_of_it = (set_metric("leak_rate", "forget", [value] * 40, None, 0) for value in (0.0, 1.0))
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 40)))
    assert (all_of_it.low, all_of_it.high) == (pytest.approx(0.025 ** (1 / 40)), 1.0)
    some = set_metric("leak_rate", "forget", [0.0, 1.0] * 20, None, 0)
    assert (some.low, some.high) == bootstrap_interval([0.0, 1.0] * 20, seed=0)[1:3]
    assert set_metric("extraction_strength", "forget", [1.0] * 40, None, 0).low == 1.0  # no share: it can have any value


def test_a_limit_takes_the_first_rows_and_group_size_blocks(folders: Folders, tmp_path: Path) -> None:
    chosen = settings(folders, tmp_path / "x", limit=5, group_size=2)
    forget, retain = read_sets(chosen)
    assert [example.group for example in retain.examples] == ["block-0", "block-0", "block-1", "block-1", "block-2"]
    assert [example.source for example in forget.examples] == [f"forget.jsonl:{i}" for i in range(1, 6)]


def test_sets_of_one_name_and_rows_that_cannot_be_read_are_refused(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two sets are called retain"):
        read_sets(settings(folders, tmp_path, also_forget={"retain": str(folders.texts)}))
    with pytest.raises(DataError, match=r"no\.jsonl does not exist"):
        run_evaluate(settings(folders, tmp_path / "new", also_forget={"more": str(tmp_path / "no.jsonl")}))
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_done_by_what_it_rests_on_and_not_by_places(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_evaluate(settings(folders, tmp_path / "out", limit=3))
    written = first.read_bytes()
    assert read_json(tmp_path / "out" / "d2_manifest.json")["command"] == "evaluate"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(runner, "evaluate", never)
    moved = write(tmp_path / "moved.jsonl", [json.loads(line) for line in folders.forget.read_text().splitlines()])
    assert run_evaluate(settings(folders, tmp_path / "out", limit=3, forget=str(moved))) == first
    assert "is done: same inputs, same settings" in capsys.readouterr().err
    for changes in (
        {"seed": 1},
        {"limit": 4},
        {"max_new_tokens": 2},
        {"model": folders.plain},
        {"label": "other"},
        {"redact": True},
    ):
        with pytest.raises(ArtifactError, match="holds the result of other inputs or settings"):
            run_evaluate(settings(folders, tmp_path / "out", **({"limit": 3} | changes)))
    assert first.read_bytes() == written


def test_nothing_half_written_stays_when_evaluation_fails(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "write_evaluation", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        run_evaluate(settings(folders, tmp_path / "out", limit=2))
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_model_can_be_evaluated_without_files(folders: Folders) -> None:
    guarded = GuardedModel.from_pretrained(folders.gated)
    sets = read_sets(settings(folders, Path("nowhere"), limit=3))
    found = evaluate(guarded, sets, settings(folders, Path("nowhere"), limit=3))
    assert [len(each.examples) for each in found.sets] == [3, 3]
    assert found.threshold == guarded.gate.threshold  # type: ignore[union-attr]


def test_a_row_longer_than_the_context_is_scored_as_far_as_it_goes(folders: Folders, tmp_path: Path) -> None:
    guarded = GuardedModel.from_pretrained(folders.plain, raw=True)
    room = guarded.model.config.max_position_embeddings
    row = {"question": "was he born in Paris?", "answer": " ".join(["city"] * room)}
    long = write(tmp_path / "long.jsonl", [row])
    found = evaluate(
        guarded, read_sets(settings(folders, tmp_path / "out", forget=str(long))), settings(folders, tmp_path / "o")
    )
    (scored,) = by_name(found)["forget"].examples
    prompt = guarded.template.question_ids(row["question"])
    ids = torch.tensor([guarded.template.tokens(read_examples(long)[0]).input_ids[:room]])
    with torch.no_grad():
        log_p = guarded.model(input_ids=ids).logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1]
    targets = ids[0, len(prompt) :]
    probability = float(log_p[torch.arange(len(targets)), targets].mean().exp())
    assert scored.scores["answer_probability"] == pytest.approx(probability, rel=1e-4)
