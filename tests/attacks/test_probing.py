"""Linear probes: a planted secret is found, chance is chance, the control task is too; every step by hand or done naively."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tiny_models
from d2unlearn.attacks.probing import (
    Choices,
    LinearProbes,
    answer_choices,
    answer_vectors,
    first_half,
    layer_states,
    other_rows,
    own_answers,
    pair_differences,
    picked_shares,
    probe_margins,
    probe_readings,
)
from d2unlearn.attacks.reading import AskedRows, NotShownError
from d2unlearn.errors import ConfigError
from d2unlearn.models import state_hash
from d2unlearn.schema import Example, Message, Tokens

GROUPS = tuple(f"g{index // 5}" for index in range(120))
HALVES = first_half(GROUPS, seed=0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """States that hold the true answer under a random linear map, with noise; differences of answers; rows of pairs."""
    answers = torch.randn(120, 4, 12, generator=generator(0), dtype=torch.float64)
    differences, of_row = pair_differences(list(answers))
    held = answers[:, 0] @ torch.randn(12, 40, generator=generator(1), dtype=torch.float64)
    return held + noise * torch.randn(120, 40, generator=generator(2), dtype=torch.float64), differences, of_row


def test_a_planted_secret_is_found_in_groups_that_taught_nothing() -> None:
    states, differences, of_row = planted(noise=0.1)
    shares = picked_shares(states, differences, of_row, torch.tensor(HALVES), 0.01)
    assert float(shares.mean()) > 0.97
    assert float(shares.min()) >= 1 / 3


def test_random_states_and_the_control_task_are_at_chance() -> None:
    states, differences, of_row = planted(noise=0.1)
    noise = torch.randn(120, 40, generator=generator(3), dtype=torch.float64)
    shuffled = states[other_rows(GROUPS, HALVES, seed=0)]
    for nothing in (noise, shuffled):
        shares = picked_shares(nothing, differences, of_row, torch.tensor(HALVES), 0.01)
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.08)


def test_states_that_do_not_differ_leave_ties() -> None:
    _, differences, of_row = planted(noise=0.0)
    same = torch.ones(120, 40, dtype=torch.float64)
    assert picked_shares(same, differences, of_row, torch.tensor(HALVES), 0.01).tolist() == [0.5] * 120


def test_the_dual_form_is_ridge_regression_on_all_products() -> None:
    states, differences, of_row = planted(noise=1.0)
    states, differences = states[:, :5], differences[:, :3]
    learnt = torch.tensor(HALVES)
    standard = (states - states[learnt].mean(0)) / states[learnt].std(0, correction=0) / 5**0.5
    products = torch.einsum("ph,pe->phe", standard[of_row], differences).reshape(len(differences), -1)
    mine = products[learnt[of_row]]
    weights = torch.linalg.solve(mine.T @ mine + 0.3 * len(mine) * torch.eye(15, dtype=torch.float64), mine.sum(dim=0))
    torch.testing.assert_close(probe_margins(states, differences, of_row, learnt, 0.3), products @ weights)


def test_scale_and_place_of_a_state_s_dimensions_do_not_matter() -> None:
    states, differences, of_row = planted(noise=1.0)
    other = states * torch.logspace(-2, 3, 40, dtype=torch.float64) + torch.arange(40)
    learnt = torch.tensor(HALVES)
    margins = [probe_margins(each, differences, of_row, learnt, 0.01) for each in (states, other)]
    torch.testing.assert_close(*margins, atol=1e-6, rtol=1e-5)


def test_halves_hold_whole_groups_and_the_control_s_rows_come_from_others_of_the_same_half() -> None:
    assert sum(HALVES) == 60
    assert all(len({HALVES[i] for i in range(120) if GROUPS[i] == group}) == 1 for group in GROUPS)
    assert first_half(GROUPS, seed=1) != HALVES
    order = other_rows(GROUPS, HALVES, seed=0)
    assert sorted(order) == list(range(120))
    assert all(HALVES[i] == HALVES[j] and GROUPS[i] != GROUPS[j] for i, j in enumerate(order))
    with pytest.raises(NotShownError, match="3 are too few"):
        first_half(["a", "b", "c", "c"], seed=0)


def test_answers_are_weighted_means_less_the_mean_of_all_tokens() -> None:
    """Token 1 is in both true answers and weighs log(3/3) = 0; token 2 in one, log(3/2); token 3 in none, log 3."""
    embeddings = torch.tensor([[0.0, 0.0], [4.0, 4.0], [2.0, 0.0], [0.0, 2.0]])
    first, second = answer_vectors([((1, 2), (1, 2, 3)), ((1,), (3,))], embeddings)
    half, whole = math.log(1.5), math.log(3)
    mixed = [(half * 2) / (half + whole) - 1.5, (whole * 2) / (half + whole) - 1.5]
    torch.testing.assert_close(first, torch.tensor([[0.5, -1.5], mixed], dtype=torch.float64))
    torch.testing.assert_close(second, torch.tensor([[0.0, 0.0], [-1.5, 0.5]], dtype=torch.float64))


def test_differences_have_length_one_and_know_their_row() -> None:
    vectors = [torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])]
    differences, of_row = pair_differences(vectors)
    torch.testing.assert_close(differences, torch.tensor([[0.6, -0.8], [1.0, 0.0], [0.0, 0.0]]))
    assert of_row.tolist() == [0, 1, 1]


def row(index: int, question: str, answer: str, **extra: object) -> Example:
    return Example(str(index), (Message("user", question),), answer, "rows:1", f"g{index // 2}", extra)


def letters(text: str) -> list[int]:
    """A word is a token: its letters' sum."""
    return [sum(map(ord, word)) for word in text.split()]


def test_own_wrong_answers_and_the_true_one_in_their_words() -> None:
    assert own_answers(row(0, "q", "a", perturbed_answer=["x", "y"], paraphrased_answer="b")) == ("b", ["x", "y"])
    assert own_answers(row(0, "q", "a", perturbed_answer="x")) == ("a", ["x"])
    assert own_answers(row(0, "q", "a", choices=["c", "a", "d"])) == ("a", ["c", "d"])
    assert own_answers(row(0, "q", "a")) == ("a", [])


def test_wrong_answers_answer_alike_questions_of_other_groups_in_the_same_half_without_what_was_asked() -> None:
    rows = [row(index, f"where lives person{index}", f"person{index} lives in city{index}") for index in range(0, 8)]
    rows[4] = row(4, "what did person4 write", "person4 did write book4")
    groups = ["a", "a", "b", "b", "c", "c", "d", "d"]
    halves = first_half(groups, seed=0)
    made = answer_choices(rows, groups, "of alike questions", LinearProbes(wrong=1), letters, seed=0)
    for index, (true, wrong) in enumerate(made):
        assert true == tuple(letters(f"book{index}" if index == 4 else f"in city{index}"))
        others = [j for j in range(8) if halves[j] == halves[index] and groups[j] != groups[index]]
        alike = [j for j in others if (j == 4) == (index == 4)] or others
        assert wrong == made[alike[0]][0]
    own = [row(index, "q", "true one", perturbed_answer=["wrong one", "other", "third"]) for index in range(4)]
    made = answer_choices(own, ["a", "b", "c", "d"], "its own", LinearProbes(wrong=2), letters, seed=0)
    assert made[0] == (tuple(letters("true one")), tuple(letters("wrong one")), tuple(letters("other")))


def test_states_are_each_layer_s_output_at_the_last_prompt_position() -> None:
    model, rows = tiny_models.llama(), tiny_models.rows(3, 6)
    first, second = layer_states(model, rows, batch_size=4)
    for index, each in enumerate(rows):
        end = each.answer_mask.index(True)
        with torch.no_grad():
            hidden = model(torch.tensor([each.input_ids[:end]]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(first[index], hidden[1][0, -1].double(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.model.norm(second[index].float()), hidden[2][0, -1], atol=1e-4, rtol=1e-4)


def asked_of(model_vocabulary: int, n: int) -> tuple[AskedRows, list[Choices]]:
    """Rows whose prompt's last token is the answer's only one: layers that pass on what they read hold the answer."""
    tokens, choices = [], []
    draw = generator(5)
    for index in range(n):
        ids = torch.randint(4, model_vocabulary, (8,), generator=draw).tolist()
        tokens.append(Tokens(str(index), (*ids[:4], ids[4]), (False,) * 4 + (True,)))
        choices.append(((ids[3],), (ids[5],), (ids[6],)))
    return AskedRows("forget", tuple(tokens), tuple(f"g{index // 4}" for index in range(n))), choices


def test_a_model_that_holds_the_answer_is_found_in_every_layer_and_left_as_it_was() -> None:
    model = tiny_models.llama()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        few = torch.randn(tiny_models.VOCABULARY, 6, generator=generator(6)) @ torch.randn(6, 32, generator=generator(7))
        model.get_input_embeddings().weight.copy_(few)
    before = state_hash(model)
    asked, choices = asked_of(tiny_models.VOCABULARY, 160)
    readings = probe_readings(model, asked, choices, "its own", LinearProbes())
    assert [reading.setting["layer"] for reading in readings] == [0, 1]
    assert min(reading.mean for reading in readings) > 0.95
    control = probe_readings(model, asked, choices, "its own", LinearProbes(), control=True)
    assert [reading.mean for reading in control] == pytest.approx([0.5, 0.5], abs=0.08)
    assert control[0].setting == {
        "layer": 0,
        "wrong answers": "its own",
        "chance": 0.5,
        "control": "another row's answers",
    }
    assert state_hash(model) == before


def test_a_row_without_wrong_answers_is_not_asked() -> None:
    asked, choices = asked_of(tiny_models.VOCABULARY, 24)
    choices[3] = ()
    reading = probe_readings(tiny_models.llama(), asked, choices, "its own", LinearProbes())[0]
    assert [index for index, value in enumerate(reading.values) if math.isnan(value)] == [3]
    assert reading.not_asked == {"no prompt, or no wrong answer": 1}
    with pytest.raises(NotShownError, match="no probe can be taught"):
        probe_readings(tiny_models.llama(), asked, [()] * 24, "its own", LinearProbes())


def test_impossible_probes_are_said() -> None:
    for wrong in ({"wrong": 0}, {"ridge": 0.0}):
        with pytest.raises(ConfigError, match="a probe needs"):
            LinearProbes(**wrong)  # type: ignore[arg-type]
