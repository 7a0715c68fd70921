"""One pass over rendered rows gives what each row's own full logits give, in the rows' order, whatever the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tiny_models
from d2unlearn.schema import Tokens
from d2unlearn.teacher_forcing import TeacherForced, score_rows, teacher_forced


def row(seed: int, prompt: int, answer: int) -> Tokens:
    ids = np.random.default_rng(seed).integers(4, 100, size=prompt + answer).tolist()
    return Tokens(f"r{seed}", tuple(ids), (False,) * prompt + (True,) * answer)


ROWS = [row(0, 3, 4), row(1, 2, 9), row(2, 5, 0), row(3, 0, 6), row(4, 6, 1)]
"""The third has no answer; of the fourth, plain text, the first token is predicted by nothing."""


@torch.no_grad()
def naive(model: torch.nn.Module, tokens: Tokens) -> TeacherForced:
    logits = model(input_ids=torch.tensor([tokens.input_ids])).logits[0, :-1].double()
    logits = logits[torch.tensor(tokens.answer_mask[1:])]
    targets = [token for token, of_answer in zip(tokens.input_ids[1:], tokens.answer_mask[1:], strict=True) if of_answer]
    energies = [-float(torch.logsumexp(each, 0)) for each in logits]
    nll = tuple(-float(torch.log_softmax(each, 0)[target]) for each, target in zip(logits, targets, strict=True))
    correct = tuple(int(each.argmax()) == target for each, target in zip(logits, targets, strict=True))
    return TeacherForced(energies[0], sum(energies) / len(energies), nll, correct)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_every_row_has_the_scores_of_its_own_full_logits(batch_size: int) -> None:
    model = tiny_models.llama()
    for tokens, scores in zip(ROWS, score_rows(model, ROWS, batch_size=batch_size), strict=True):
        if not tokens.answer_length:
            assert (scores.nll, scores.correct) == ((), ())
            assert math.isnan(scores.prompt_energy + scores.mean_nll)
            continue
        expected = naive(model, tokens)
        assert scores.correct == expected.correct
        assert scores.nll == pytest.approx(expected.nll, rel=1e-5)
        assert scores.mean_nll == pytest.approx(sum(expected.nll) / len(expected.nll), rel=1e-5)
        assert scores.prompt_energy == pytest.approx(expected.prompt_energy, rel=1e-5)
        assert scores.answer_energy == pytest.approx(expected.answer_energy, rel=1e-5)


def test_rows_of_the_vocabulary_that_are_left_out_have_no_part_in_the_energy() -> None:
    model = tiny_models.llama()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ROWS[0].input_ids])).logits[0, 2:-1, :100].double()
    (scores,) = score_rows(model, ROWS[:1], batch_size=1, vocab_rows=100)
    assert scores.answer_energy == pytest.approx(-float(torch.logsumexp(logits, -1).mean()), rel=1e-5)


def test_two_positions_worked_by_hand_and_none_at_all() -> None:
    scores = teacher_forced([2.0, 4.0], [0.5, 1.5], [1.0, 0.0])
    assert scores == TeacherForced(-2.0, -3.0, (0.5, 1.5), (True, False))
    assert scores.mean_nll == 1.0
    assert teacher_forced([2.0], [0.5]).correct == ()
    nothing = teacher_forced((), ())
    assert all(math.isnan(value) for value in (nothing.prompt_energy, nothing.answer_energy, nothing.mean_nll))
