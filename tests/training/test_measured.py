"""The recipe that measures: its pure parts by hand, a probe that leaves no trace, and whole runs of the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl

import tiny_models
from d2unlearn.cli.main import app
from d2unlearn.config import UnlearnSettings
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message, Tokens
from d2unlearn.teacher_forcing import score_rows
from d2unlearn.training import probe, steered_run
from d2unlearn.training.measured import account, choices_of, config_with, evaluation_steps, measure, most_steps, swapped
from d2unlearn.training.monitor import Snapshot
from d2unlearn.training.probe import RateTrial, chosen_rate, next_rate, passes
from d2unlearn.training.renderings import asking_wordings, reworded_rows
from d2unlearn.training.steering import Steering, raised_weight
from d2unlearn.training.targets import Targets
from d2unlearn.training.unlearn import run_unlearn

from .runs import EUA, FORGET, RETAIN, distance, lora, trainer, unlearn_settings, weights

TARGETS = Targets(0.1, 0.99)


# -- the probe --------------------------------------------------------------------------------------------------------


def tried(first: float, largest_passing: float) -> list[RateTrial]:
    """The search where every rate up to `largest_passing` passes."""
    trials: list[RateTrial] = []
    while (rate := next_rate(trials, first)) is not None:
        trials.append(RateTrial(rate, 4, 0.5, 1.0, rate <= largest_passing))
    return trials


@pytest.mark.parametrize(
    ("largest", "rates", "chosen"),
    [
        (4.0, [1, 2, 4, 8], 4),
        (1.0, [1, 2], 1),
        (0.3, [1, 0.5, 0.25], 0.25),
        (100.0, [1, 2, 4, 8, 16], 16),
        (0.0, [1, 0.5, 0.25, 0.125, 0.0625], 0.0625),
    ],
)
def test_rates_are_doubled_while_they_pass_and_halved_until_one_does(largest: float, rates: list[float], chosen: float) -> None:
    trials = tried(1.0, largest)
    assert [trial.rate for trial in trials] == rates
    assert chosen_rate(trials, 1.0) == chosen
    assert chosen_rate([], 0.7) == 0.7


@pytest.mark.parametrize(
    ("forget", "kept", "said"),
    [(0.3, 0.985, True), (0.32, 0.985, None), (0.3, 0.97, False), (math.nan, 1.0, False), (0.3, math.nan, False)],
)
def test_a_rate_passes_half_way_before_twice_the_loss_allowed(forget: float, kept: float, said: bool | None) -> None:
    """From 1 to 0.1 half of the way in logarithms is 0.316; twice the hundredth that is allowed leaves 0.98."""
    assert passes(1.0, forget, kept, TARGETS) is said


def known(rows: list[Tokens], model: Any) -> list[Tokens]:
    """The rows with the model's own greedy answers, which it therefore knows."""
    found = []
    for row in rows:
        ids, start = list(row.input_ids), row.answer_mask.index(True)
        for place in range(start, len(ids)):
            with torch.no_grad():
                ids[place] = int(model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].argmax())
        found.append(Tokens(row.example_id, tuple(ids), row.answer_mask))
    return found


@pytest.mark.parametrize("adapter", [None, lora()])
def test_a_probe_leaves_weights_gradients_random_state_and_counts_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Any
) -> None:
    model = tiny_models.gpt2()
    rows = {"forget_dataset": known(FORGET, model), "retain_dataset": known(RETAIN, model)}
    made = trainer(tmp_path, model, peft_config=adapter, **rows)
    monkeypatch.setattr(probe, "STEPS", 4)
    monkeypatch.setattr(probe, "MOST_TRIALS", 2)
    before, state, training = weights(made.model), torch.get_rng_state(), made.model.training
    choices = measure(made, forget_below=made.before.forget_probability / 100)
    assert len(choices.trials) == 2
    assert {trial.rate for trial in choices.trials} >= {choices.learning_rate}
    assert distance(weights(made.model), before) == 0.0
    assert torch.equal(torch.get_rng_state(), state)
    assert made.model.training == training
    assert [p.grad for p in made.model.parameters() if p.grad is not None] == []
    assert (made._monitored, made.method, made.state.global_step) == ({}, EUA, 0)
    assert choices_of(json.loads(json.dumps(account(choices)))) == choices


def test_the_gradient_of_the_probe_is_that_of_the_first_step(tmp_path: Path) -> None:
    from .runs import step_gradient

    made = trainer(tmp_path, tiny_models.llama())
    _, expected = step_gradient(made)
    made.model.zero_grad()
    made.backward_of(0)
    for name, parameter in made.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


# -- targets and plan -------------------------------------------------------------------------------------------------


def row(name: str, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Tokens:
    return Tokens(name, prompt + answer, (False,) * len(prompt) + (True,) * len(answer))


def test_answers_are_swapped_between_rows_and_a_lone_row_gets_retained_ones() -> None:
    one, two, three = (row(name, (1, number, 9), (number, 50)) for name, number in (("a", 11), ("b", 12), ("c", 13)))
    found = {each.example_id: each for each in swapped([one, two, three], [])}
    assert set(found) == {"a/b", "a/c", "b/a", "b/c", "c/a", "c/b"}
    assert found["b/a"] == Tokens("b/a", (1, 12, 9, 11, 50), (False, False, False, True, True))
    lone = swapped([one], [two, three, one])
    assert [each.example_id for each in lone] == ["a/c", "a/b"] or {each.example_id for each in lone} == {"a/b", "a/c"}
    assert swapped([row("text", (1,), (5, 6))], [two]) == []


def test_the_bound_is_the_percentile_of_swapped_answers_or_the_retain_model_s_own(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama())
    pairs = swapped(made.watched["forget"], made.watched["retain"])
    found = sorted(math.exp(-scores.mean_nll) for scores in score_rows(tiny_models.llama(), pairs, batch_size=1))
    place = 0.95 * (len(found) - 1)
    low = int(place)
    expected = found[low] + (place - low) * (found[low + 1] - found[low])
    assert measure(made, learning_rate=1e-3).forget_below == pytest.approx(expected, rel=1e-3)
    other = tiny_models.llama(seed=5)
    own = [math.exp(-scores.mean_nll) for scores in score_rows(other, FORGET, batch_size=1)]
    choices = measure(made, retain_model=other, learning_rate=1e-3)
    assert (choices.forget_below, choices.forget_below_is) == (pytest.approx(sum(own) / len(own)), "the retain model's")


def test_evaluations_take_a_tenth_and_the_last_step_is_one() -> None:
    """A forward takes 0.4 of a step a token: 1,000 tokens looked at are 400, ten times which 50 steps of 80 tokens train."""
    assert evaluation_steps(1000, 80) == 50
    assert evaluation_steps(1, 8000) == 1
    assert most_steps(14, 8, 45, None) == 540  # 500, up to a whole number of 45
    assert most_steps(100, 8, 45, None) == 1035  # ten passes over 800 rows
    assert most_steps(14, 8, 45, 3.5) == 90


def test_a_config_is_made_from_what_was_measured_and_the_trainer_s_stays(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), eval_rows=4)
    choices = measure(made, forget_below=0.001, keep_at_least=0.9, learning_rate=2e-3, epochs=3, free_weights=["alpha"])
    config: Any = config_with(made.args, choices)  # type: ignore[arg-type]
    assert (config.forget_below, config.keep_at_least, config.learning_rate, config.free_weights) == (
        0.001,
        0.9,
        2e-3,
        ["alpha"],
    )
    assert config.max_steps % config.eval_steps == 0
    assert config.max_steps >= 6
    assert (config.metric_for_best_model, config.save_steps) == ("standing", config.eval_steps)
    assert (made.args.forget_below, made.args.learning_rate) == (None, 1e-3)


@pytest.mark.parametrize("given", [{"keep_at_least": 1.0}, {"forget_below": 0.0}, {"forget_below": 1.5}])
def test_targets_that_cannot_be_are_refused(tmp_path: Path, given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="should be above 0 and below 1"):
        measure(trainer(tmp_path, tiny_models.llama()), **given)  # type: ignore[arg-type]


# -- renderings -------------------------------------------------------------------------------------------------------


def example(number: int) -> Example:
    return Example(f"row-{number}", (Message("user", f"Who is {number}?"),), f"It is {number}.", f"f:{number}")


@pytest.mark.parametrize(("rows", "made"), [(1, 14), (4, 16), (16, 16), (20, 20), (200, 32), (0, 0)])
def test_few_rows_are_asked_in_more_wordings_and_of_many_some_are(rows: int, made: int) -> None:
    found = reworded_rows([example(number) for number in range(rows)])
    assert len(found) == len({each.example_id for each in found}) == made
    assert all(each.answer == f"It is {each.example_id.split('/')[0].removeprefix('row-')}." for each in found)
    assert all(each.prompt[-1].role == "user" for each in found)
    assert found == reworded_rows([example(number) for number in range(rows)])
    assert len({each.example_id.split("/")[0] for each in found}) == min(rows, made)


def test_a_rendering_gives_nothing_of_the_answer_away() -> None:
    assert {"good-morning", "library-chatbot"} <= {wording.name for wording in asking_wordings()}
    for each in reworded_rows([example(7)]):
        assert "It is 7." not in "".join(message.content for message in each.prompt)


# -- steering ---------------------------------------------------------------------------------------------------------


def test_a_weight_doubles_with_a_whole_violation_and_stays_without_one() -> None:
    assert raised_weight(0.05, 0.0, 0.05) == 0.05
    assert raised_weight(0.05, 0.5, 0.05) == pytest.approx(0.05 * math.sqrt(2))
    assert raised_weight(1.0, 7.0, 1.0) == 2.0
    assert raised_weight(60.0, 1.0, 1.0) == 64.0


def steered(free: list[str]) -> tuple[Steering, Any, Any]:
    before = Snapshot(-9.0, -9.0, 1.0, 0.9, 0.1, 0.5, retain_right=1.0, near_right=1.0)
    args = SimpleNamespace(forget_below=0.1, keep_at_least=0.99, free_weights=free, warmup_steps=10)
    made = SimpleNamespace(method=EUA, before=before, args=args)
    return Steering(made), made, args


def look(steering: Steering, args: Any, step: int, forget: float, right: float) -> bool:
    control = TrainerControl()
    numbers = {"eval_forget_probability": forget, "eval_retain_right": right, "eval_near_right": 1.0}
    steering.on_evaluate(args, SimpleNamespace(global_step=step, epoch=step / 4), control, metrics=numbers)
    return control.should_training_stop


def test_each_constraint_raises_its_own_weight_beyond_the_warm_up() -> None:
    steering, made, args = steered(["gamma", "alpha"])
    assert not look(steering, args, 10, 1.0, 0.5)
    assert made.method == EUA
    assert not look(steering, args, 20, 10**-0.5, 1.0)
    assert (made.method.gamma, made.method.alpha) == (pytest.approx(0.5 * math.sqrt(2)), 1.0)
    assert not look(steering, args, 30, 0.01, 0.98)
    assert (made.method.gamma, made.method.alpha) == (pytest.approx(0.5 * math.sqrt(2)), 2.0)
    fixed, alone, args = steered(["alpha"])
    look(fixed, args, 20, 1.0, 0.5)
    assert (alone.method.gamma, alone.method.alpha) == (0.5, 2.0)


def test_it_ends_when_both_targets_have_held_twice_running_and_remembers_how_long() -> None:
    steering, _, args = steered(["gamma"])
    assert [look(steering, args, step, *at) for step, at in enumerate([(0.05, 1.0), (0.2, 1.0), (0.05, 1.0)], start=5)] == [
        False
    ] * 3
    again, _, _ = steered(["gamma"])
    state: Any = SimpleNamespace(stateful_callbacks={"Steering": steering.state()})
    again.on_train_begin(args, state, TrainerControl())
    assert look(again, args, 8, 0.05, 1.0)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> UnlearnSettings:
    return replace(unlearn_settings(tmp_path_factory.mktemp("given")), batch_size=4)


def recipe_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "d2_manifest.json").read_text())["recipe"]
    return found


@pytest.mark.trains
def test_a_target_that_holds_ends_the_run_and_all_of_it_is_in_the_manifest(
    given: UnlearnSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The random model says nothing of the rows: they are below the bound from the first, and nothing can be lost."""
    folder = run_unlearn(replace(given, forget_below=0.5, epochs=200, output=str(tmp_path / "artifact")))
    recipe, told = recipe_of(folder), capsys.readouterr().err
    assert recipe["met"] is True
    assert [point["step"] for point in recipe["path"]] == [recipe["eval_steps"], 2 * recipe["eval_steps"]]
    assert recipe["max_steps"] >= 400
    assert recipe["verdict"].startswith("both targets hold (forget at most 0.5, keep at least 0.99)")
    assert recipe["verdict"] in told
    assert "of at most" in told
    assert recipe["path"][0]["weights"] == {"gamma": 0.05, "alpha": 1.0}
    assert recipe["learning_rate"] == 1e-2
    assert not steered_run.missed_targets(folder)


@pytest.mark.trains
def test_a_missed_target_is_written_said_first_and_strict_ends_with_another_code(
    given: UnlearnSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "artifact"
    options = {"model": given.model, "forget": given.forget, "retain": given.retain, "output": str(folder), "epochs": "2"}
    options |= {"forget-below": "1e-9", "learning-rate": "1e-2", "batch-size": "4", "accumulation": "1"}
    command = ["unlearn", "--strict", *(text for name, value in options.items() for text in (f"--{name}", value))]
    assert app(command, standalone_mode=False) == 3
    recipe, told = recipe_of(folder), capsys.readouterr().err.splitlines()
    assert recipe["met"] is False
    ends = next(number for number, line in enumerate(told) if line.startswith("target missed: forget (forget at most 1e-09"))
    assert told[ends + 1].startswith("kept: epoch")
    assert recipe["path"][-1]["step"] == recipe["max_steps"]
    assert recipe["path"][-1]["weights"]["alpha"] == 1.0
    assert app(command, standalone_mode=False) == 3  # done before, and still missed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": "measured", "method": "npo"}, "the measured recipe is for eua"),
        ({"forget_below": 0.1, "keep": "last"}, "leave --keep last out"),
        ({"strict": True}, "--strict is for --recipe measured"),
    ],
)
def test_what_the_recipe_cannot_do_is_one_sentence(given: UnlearnSettings, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        steered_run.is_measured(replace(given, **changes))
