"""Training against an attacker: what others' answers say of a token, whom it meets, a step of both, and a killed run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny_models
from d2unlearn.errors import ConfigError
from d2unlearn.methods import METHODS
from d2unlearn.methods.base import Hardening
from d2unlearn.methods.healing import Healing
from d2unlearn.schema import Tokens
from d2unlearn.training.deepening import DeepeningRows, Stage, phases
from d2unlearn.training.hardening import Hardener, above_cap, attacker_lives
from d2unlearn.training.ngram import ngram_model
from d2unlearn.training.rounds import copies

from .runs import distance, weights

ROWS = DeepeningRows(tiny_models.rows(1, 6), tiny_models.rows(2, 12), tiny_models.rows(3, 5))
GROUPS = ["a", "a", "b", "b", "c", "c"]


def plan(**changes: Any) -> Hardening:
    made = METHODS["deep_eua"](hardening_steps=4, attack_share=0.34, hidden=0.0, **changes).deepening
    assert made is not None
    assert made.hardening is not None
    return replace(made.hardening, lives=(3, 3))


def hardener(state: Path | None = None, **changes: Any) -> Hardener:
    made = Hardener(tiny_models.llama(), tiny_models.llama(), plan(**changes), ROWS, GROUPS, 1e-3, 7, state)
    torch.manual_seed(0)
    nn.init.normal_(made.model.get_parameter("model.embed_tokens.weight"))
    return made


def row(*ids: int, answer: int) -> Tokens:
    return Tokens(str(ids), ids, (False,) * (len(ids) - answer) + (True,) * answer)


def test_the_cap_is_what_other_answers_say_of_a_token() -> None:
    """Answers 5 6 and 5 7 after prompts 1 2: after 2 always 5, after 5 half the time 6; 8 was never seen, nor was 9 9."""
    model = ngram_model([row(1, 2, 5, 6, answer=2), row(1, 2, 5, 7, answer=2)], vocab_size=100)
    assert model.probability((1, 2), 5) == pytest.approx(0.55 + 0.30 + 0.14 * 2 / 4 + 0.0001)
    assert model.probability((2, 5), 6) == pytest.approx(0.55 / 2 + 0.30 / 2 + 0.14 / 4 + 0.0001)
    assert model.probability((9, 9), 5) == pytest.approx(0.14 * 2 / 4 + 0.0001)
    assert model.probability((5,), 7) == pytest.approx(0.30 / 2 + 0.14 / 4 + 0.0001)
    half = math.log(0.55 / 2 + 0.30 / 2 + 0.14 / 4 + 0.0001)
    assert model.caps(row(1, 2, 5, 6, 8, answer=3)) == pytest.approx([-0.7, half, -7.0])
    assert model.caps(row(5, 6, answer=2)) == pytest.approx([math.log(0.30 / 2 + 0.14 / 4 + 0.0001)])


def test_only_what_is_above_the_cap_counts() -> None:
    """log p -1 and -5, caps -3 and -4: (2^2 + 0) / 2, and the gradient of the first nll is -2 * 2 / 2."""
    nll = torch.tensor([1.0, 5.0], requires_grad=True)
    loss = above_cap(nll, torch.tensor([-3.0, -4.0]))
    loss.backward()
    assert loss.item() == 2.0
    assert nll.grad is not None
    assert nll.grad.tolist() == [-2.0, 0.0]
    assert above_cap(torch.zeros(0), torch.zeros(0)).item() == 0.0


def test_attackers_follow_one_another_and_are_given_rows_or_whole_groups() -> None:
    groups = [f"author-{index // 5}" for index in range(40)]
    given = attacker_lives(replace(plan(), steps=500, share=0.25, lives=(5, 40)), groups, seed=3)
    assert [life.start for life in given] == [0, *(life.end for life in given[:-1])]
    assert given[-1].end == 500
    assert all(5 <= life.end - life.start <= 40 for life in given[:-1])
    assert all(sorted((*life.given, *life.others)) == list(range(40)) and len(life.given) == 10 for life in given)
    assert all(1.0 <= life.rate <= 10 / 3 for life in given)
    whole = [life for life in given if len({groups[index] for index in life.given}) == 2]
    assert 0.2 < len(whole) / len(given) < 0.8
    without = attacker_lives(replace(plan(), steps=500, share=0.25), [None] * 40, seed=3)
    assert all(len({index // 5 for index in life.given}) > 2 for life in without)


def test_a_single_row_cannot_be_attacked_and_held_at_once() -> None:
    with pytest.raises(ConfigError, match="needs two rows to forget: leave hardening_steps at 0"):
        attacker_lives(plan(), ["a"], seed=0)


def test_what_is_declared_before_the_rounds() -> None:
    """Without it six copies of the weights are held; with it no block is needed, a rest follows, and nine are held."""
    off = METHODS["deep_eua"](hardening_steps=0, hardening_again=0).deepening
    alone = METHODS["deep_eua"](hardening_steps=9, blocks=0, gamma=0.3).deepening
    assert off is not None
    assert alone is not None
    assert (off.hardening, copies(off), copies(alone)) == (None, 6, 9)
    assert alone.hardening is not None
    assert phases(alone) == [alone.hardening, [Stage(False, 90, 0, 0)]]
    assert (alone.hardening.held, alone.healing) == (Healing(gamma=0.3, likelihood=True), Healing(gamma=0.05))


@pytest.mark.trains
def test_a_step_goes_by_both_gradients_and_takes_the_attacker_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's gradient is that of either alone, summed, each cut at its length; phi - theta is as the attack left it."""
    made, apart = hardener(), dict[str, list[torch.Tensor]]()
    life = attacker_lives(made.plan, GROUPS, made.seed)[0]
    attacker, optimizer = made._attacker(life), torch.optim.SGD(made.model.parameters(), lr=1.0)
    for name, place in (("_hold", made.model), ("_cap", attacker[0])):
        watch(monkeypatch, name, place, apart)
    before = weights(made.model)
    made._step(attacker, optimizer, life, 0, made._batches(), made._caps())
    after, attacked = weights(made.model), weights(attacker[0])
    lengths = [torch.stack([gradient.norm() for gradient in apart[name]]).norm().item() for name in ("_hold", "_cap")]
    assert lengths == pytest.approx([1.0, 0.7], rel=1e-4)
    for name, held, capped in zip(before, apart["_hold"], apart["_cap"], strict=True):
        torch.testing.assert_close(after[name], before[name] - held - capped, rtol=1e-5, atol=1e-6)
    left = apart["away"]
    for name, distance_left in zip(before, left, strict=True):
        torch.testing.assert_close(attacked[name] - after[name], distance_left, rtol=1e-4, atol=1e-6)
    assert max(distance_left.abs().max().item() for distance_left in left) == pytest.approx(1e-3 * life.rate, rel=0.05)


def watch(monkeypatch: pytest.MonkeyPatch, name: str, model: nn.Module, found: dict[str, list[torch.Tensor]]) -> None:
    """Keep the gradients that a method of `Hardener` leaves on the model, and how far the attacked copy is then."""
    original = getattr(Hardener, name)

    def watched(self: Hardener, *given: Any) -> None:
        original(self, *given)
        parameters = list(model.parameters())
        found[name] = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in parameters]
        found["away"] = [p.detach() - q.detach() for p, q in zip(parameters, self.model.parameters(), strict=True)]

    monkeypatch.setattr(Hardener, name, watched)


@pytest.mark.trains
def test_a_killed_run_goes_on_with_its_attacker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after two of four steps, within the first attacker's life of three, and started from the model it began with."""
    monkeypatch.setattr("d2unlearn.training.hardening._SAVE_EVERY", 2)
    whole_run = hardener()
    whole_run.run()
    keep = Hardener._keep

    def stop(self: Hardener, *given: Any) -> None:
        keep(self, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Hardener, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        hardener(tmp_path / "hardened.pt").run()
    monkeypatch.setattr(Hardener, "_keep", keep)
    assert torch.load(tmp_path / "hardened.pt", weights_only=True)["step"] == 2
    resumed = hardener(tmp_path / "hardened.pt")
    resumed.run()
    assert distance(weights(resumed.model), weights(whole_run.model)) == 0.0
    done = hardener(tmp_path / "hardened.pt")
    done.run()
    assert distance(weights(done.model), weights(whole_run.model)) == 0.0
