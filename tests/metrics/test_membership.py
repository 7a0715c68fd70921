"""Membership inference: each attack by hand and against a naive form, the direction of its AUC, and what follows from it."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

import tiny_models
from d2unlearn.benchmark.conventions import OPEN_UNLEARNING, OURS
from d2unlearn.benchmark.gradients import gradient_norms
from d2unlearn.data.batching import pad_tokens
from d2unlearn.metrics.membership import (
    forget_quality,
    min_k,
    min_k_plus_plus,
    privleak,
    zlib_score,
)
from d2unlearn.observation import observe
from d2unlearn.quantities import Entropy, LogProbVariance, MostLikely, Nll
from d2unlearn.schema import Tokens
from d2unlearn.stats import auroc


def test_min_k_is_the_mean_of_the_least_likely_tokens() -> None:
    assert min_k([0.1, 3.0, 0.2, 2.0, 0.3], 0.4) == pytest.approx((3.0 + 2.0) / 2, rel=1e-12)
    assert min_k([0.1, 3.0], 0.4) == 3.0  # a share of less than one token is one token
    assert min_k([0.5], 1.0) == 0.5
    assert math.isnan(min_k([]))


def test_min_k_looks_at_the_tokens_and_not_at_their_order() -> None:
    rng = np.random.default_rng(0)
    nll = rng.gamma(1.0, 2.0, 13)
    assert min_k(nll) == pytest.approx(min_k(rng.permutation(nll)), rel=1e-12)


def test_min_k_plus_plus_worked_by_hand() -> None:
    # log p -1 and -3 where the model expects -2 with spread 0.5 and 2: standardised 2 and -0.5
    assert min_k_plus_plus([1.0, 3.0], [2.0, 2.0], [0.25, 4.0], 0.5) == pytest.approx(0.5, rel=1e-12)
    assert min_k_plus_plus([1.0, 3.0], [2.0, 2.0], [0.25, 4.0], 1.0) == pytest.approx(-(2 - 0.5) / 2, rel=1e-12)
    # a spread of nothing is taken for a small one: (-(1) + 1.001) / sqrt(1e-6)
    assert min_k_plus_plus([1.0], [1.001], [0.0]) == pytest.approx(-1.0, rel=1e-9)
    assert math.isnan(min_k_plus_plus([], [], []))


def test_the_models_own_mean_and_spread_of_log_probabilities_are_those_of_the_whole_vocabulary() -> None:
    model = tiny_models.llama().double()
    rows = tiny_models.rows(3, 5)
    batch = pad_tokens(rows, pad_id=0)
    with torch.no_grad():
        found = observe(model, {"forget": batch}, {"forget": [Nll(), Entropy(), LogProbVariance(), MostLikely()]})["forget"]
        logits = tiny_models.full_logits(model, batch)
    start = 0
    for row, tokens in enumerate(rows):
        places = [t for t in range(1, len(tokens.input_ids)) if tokens.answer_mask[t]]
        log_p = torch.log_softmax(logits[row], -1)[[t - 1 for t in places]]
        part = slice(start, start + len(places))
        start += len(places)
        mean = (log_p.exp() * log_p).sum(-1)
        spread = (log_p.exp() * (log_p - mean[:, None]).square()).sum(-1)
        torch.testing.assert_close(found[Entropy()][part], -mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[LogProbVariance()][part], spread, rtol=1e-8, atol=1e-10)
        assert found[MostLikely()][part].tolist() == log_p.argmax(-1).tolist()
        target = log_p[range(len(places)), [tokens.input_ids[t] for t in places]]
        naive = np.sort(((target - mean) / spread.sqrt()).numpy())[: max(1, int(0.4 * len(places)))]
        ours = min_k_plus_plus(*(found[q][part].numpy() for q in (Nll(), Entropy(), LogProbVariance())))
        assert ours == pytest.approx(-naive.mean(), rel=1e-8)


def test_the_variances_gradient_is_autograds() -> None:
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    from d2unlearn.quantities import Chunk

    def value(z: torch.Tensor) -> torch.Tensor:
        return LogProbVariance().of(Chunk(z, torch.zeros(4, dtype=torch.long)))

    assert torch.autograd.gradcheck(value, (logits,))
    shifted = value(logits + 5.0)
    torch.testing.assert_close(shifted, value(logits), rtol=1e-9, atol=1e-9)  # a constant shift leaves the softmax alone
    flat = value(torch.zeros(4, 7, dtype=torch.float64))
    torch.testing.assert_close(flat, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_zlib_attack_divides_by_the_compressed_bytes() -> None:
    text = "Basil Mahfouz Al-Kuwaiti’s books, his books, his books"
    assert zlib_score(2.0, text) == 2.0 / len(zlib.compress(text.encode("utf-8")))
    repeated = zlib_score(2.0, text * 20)
    assert repeated > zlib_score(2.0, text) / 4  # repetition costs few bytes more
    assert math.isnan(zlib_score(2.0, ""))


def test_auc_is_the_chance_that_a_held_out_text_scores_above_a_forgotten_one() -> None:
    assert auroc([1.0, 2.0], [3.0, 4.0]) == 1.0  # forgotten texts plainly known: low loss
    assert auroc([3.0, 4.0], [1.0, 2.0]) == 0.0
    assert auroc([1.0, 1.0], [1.0]) == 0.5
    assert math.isnan(auroc([], [1.0]))
    rng = np.random.default_rng(1)
    forget, holdout = rng.normal(0, 1, 30), rng.normal(0.5, 1, 20)
    labels = [0] * 30 + [1] * 20
    expected = roc_auc_score(labels, np.concatenate([forget, holdout]))
    assert auroc(forget, holdout) == pytest.approx(expected, rel=1e-12)


def test_privleak_is_zero_at_the_retain_models_auc_negative_while_known_and_positive_when_conspicuous() -> None:
    assert privleak(0.6, 0.6) == 0.0
    assert privleak(0.8, 0.6) == pytest.approx(-50.0, rel=1e-12)  # (0.2 - 0.4) / 0.4
    assert privleak(0.2, 0.6) == pytest.approx(100.0, rel=1e-12)
    assert math.isnan(privleak(0.5, 1.0))
    assert privleak(0.5, 1.0, epsilon=1e-10) == pytest.approx(0.5e12, rel=1e-9)


def test_forget_quality_is_the_p_value_of_the_two_sample_ks_test() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(0, 1, 40), rng.normal(0.7, 1, 35)
    assert forget_quality(ours, theirs) == pytest.approx(ks_2samp(ours, theirs).pvalue, rel=1e-12)
    assert forget_quality(ours, ours) == 1.0
    assert forget_quality([*ours, math.nan], theirs) == forget_quality(ours, theirs)
    assert math.isnan(forget_quality([], theirs))


def naive_norm(model: torch.nn.Module, row: Tokens, *, drop_last: bool) -> float:
    """Full logits, the answer's mean NLL, backward, and the mean over parameters of the gradient's norm."""
    model.zero_grad()
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids).logits[0, :-1]
    nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    answer = nll[torch.tensor(row.answer_mask[1:])]
    (answer[:-1] if drop_last else answer).mean().backward()
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    return sum(norms) / len(norms)


def test_the_gradient_norm_is_taken_of_each_answer_by_itself() -> None:
    model = tiny_models.llama(tied=True)
    rows = tiny_models.rows(5, 4)
    found = {c.name: list(gradient_norms(model, rows, c)) for c in (OURS, OPEN_UNLEARNING)}
    for row, ours, theirs in zip(rows, found[OURS.name], found[OPEN_UNLEARNING.name], strict=True):
        assert ours == pytest.approx(naive_norm(model, row, drop_last=False), rel=1e-5)
        assert theirs == pytest.approx(naive_norm(model, row, drop_last=True), rel=1e-5)
    assert not model.training
    assert list(gradient_norms(model, list(reversed(rows)), OURS)) == pytest.approx(found[OURS.name][::-1], rel=1e-6)


def test_an_answer_without_tokens_has_no_gradient_norm_and_leaves_no_gradient_behind() -> None:
    model = tiny_models.llama()
    empty = Tokens("empty", (1, 5, 6), (False, False, False))
    one = Tokens("one", (1, 5, 6), (False, False, True))
    assert math.isnan(next(gradient_norms(model, [empty], OURS)))
    assert math.isnan(next(gradient_norms(model, [one], OPEN_UNLEARNING)))  # its only token is the last one
    assert all(p.grad is None for p in model.parameters())


def test_dropout_moves_the_gradient_norm_only_in_the_convention_that_takes_it_in_training_mode() -> None:
    model = tiny_models.gpt2(dropout=0.5)
    row = tiny_models.rows(6, 1)
    torch.manual_seed(0)
    assert list(gradient_norms(model, row, OURS)) == list(gradient_norms(model, row, OURS))
    assert list(gradient_norms(model, row, OPEN_UNLEARNING)) != list(gradient_norms(model, row, OPEN_UNLEARNING))
