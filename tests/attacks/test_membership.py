"""Membership: scores by hand, planted members that every score finds, and rows that nothing tells apart."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

import tiny_models
from d2unlearn.attacks.membership import QUANTITIES_READ, MembershipAttack, membership_readings, membership_scores
from d2unlearn.attacks.reading import AskedRows
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.metrics.membership import membership_auc
from d2unlearn.quantities import CentredEnergy, Entropy, LogProbVariance, LogSumExp, Nll
from d2unlearn.schema import Tokens
from d2unlearn.teacher_forcing import read_quantities

NAMES = [
    "loss",
    "zlib",
    "min_k",
    "min_k_plus_plus",
    "energy of the prompt",
    "centred energy of the prompt",
    "entropy of the prompt",
    "energy of the answer",
    "centred energy of the answer",
    "entropy of the answer",
]


def asked(name: str, rows: list[Tokens]) -> AskedRows:
    return AskedRows(name, tuple(rows), tuple(row.example_id for row in rows))


def test_scores_by_hand() -> None:
    values = {
        Nll(): np.float32([1.0, 2.0, 6.0, 3.0]),
        LogSumExp(): np.float32([10.0, 2.0, 4.0, 8.0]),
        CentredEnergy(): np.float32([-9.0, -1.0, -3.0, -7.0]),
        Entropy(): np.float32([0.5, 2.0, 2.0, 1.5]),
        LogProbVariance(): np.float32([1.0, 1.0, 4.0, 0.25]),
    }
    found = membership_scores(values, "abc", share=0.5)
    assert list(found) == NAMES
    assert list(found.values()) == pytest.approx(
        [3.0, 3.0 / len(zlib.compress(b"abc")), 4.5, 2.5, -10.0, -9.0, 0.5, -6.0, -5.0, 1.5]
    )


def test_an_answer_without_a_predicted_token_has_no_score() -> None:
    nothing = {quantity: np.zeros(0, np.float32) for quantity in QUANTITIES_READ}
    assert all(map(math.isnan, membership_scores(nothing, "abc").values()))


def test_rows_are_read_as_a_plain_forward_says() -> None:
    model, rows = tiny_models.llama(), tiny_models.rows(1, 5)
    read = read_quantities(model, rows, QUANTITIES_READ, batch_size=2)
    for row, values in zip(rows, read, strict=True):
        logits = tiny_models.full_logits(model, pad_tokens([row], pad_id=0))[0, :-1].detach().double()
        mask = torch.tensor(row.answer_mask[1:])
        log_p = torch.log_softmax(logits, dim=-1)[mask]
        targets = torch.tensor(row.input_ids[1:])[mask]
        assert values[Nll()] == pytest.approx(-log_p.gather(1, targets[:, None])[:, 0].numpy(), abs=1e-4)
        assert values[LogSumExp()] == pytest.approx(torch.logsumexp(logits, -1)[mask].numpy(), abs=1e-4)
        assert values[Entropy()] == pytest.approx(-(log_p.exp() * log_p).sum(-1).numpy(), abs=1e-4)


@torch.no_grad()
def greedy(model: torch.nn.Module, row: Tokens) -> Tokens:
    """The row with the model's own answer: what a model that knows it by heart would say."""
    ids = list(row.input_ids)
    for place in range(row.answer_mask.index(True), len(ids)):
        ids[place] = int(model(torch.tensor([ids[:place]])).logits[0, -1].argmax())
    return Tokens(row.example_id, tuple(ids), row.answer_mask)


def test_planted_members_are_found_and_one_and_the_same_rows_are_not_told_apart() -> None:
    model = tiny_models.llama()
    others = tiny_models.rows(2, 12)
    members = [greedy(model, row) for row in tiny_models.rows(1, 12)]
    texts = ["the same text"] * 12
    known, unknown = (
        {str(each.setting["number"]): each for each in membership_readings(model, asked(name, rows), texts, MembershipAttack())}
        for name, rows in (("forget", members), ("never_seen", others))
    )
    assert list(known) == NAMES
    assert {(each.rows, each.measure, len(each.values)) for each in known.values()} == {("forget", "score", 12)}
    for name in NAMES[:4]:
        assert membership_auc(known[name].values, unknown[name].values) == (1.0, 1.0, 1.0, 24)
        assert membership_auc(unknown[name].values, known[name].values) == (0.0, 0.0, 0.0, 24)
    for name in NAMES:
        same = membership_auc(unknown[name].values, unknown[name].values)
        assert same.value == 0.5
        assert same.low < 0.5 < same.high


def test_the_auc_by_hand() -> None:
    """Of six pairs the never-seen row scores above in four, and as high in one."""
    auc = membership_auc([1.0, 2.0, math.nan], [2.0, 3.0, 1.5])
    assert auc.value == pytest.approx((4 + 0.5) / 6)
    assert auc.n == 5
    assert math.isnan(membership_auc([], [1.0]).value)


def test_groups_are_drawn_whole() -> None:
    """With one group on either side every draw is the same."""
    scores = [1.0, 2.0, 3.0], [2.5, 1.5, 3.5]
    alone = membership_auc(*scores)
    whole = membership_auc(*scores, groups=(["a"] * 3, ["b"] * 3))
    assert whole.low == whole.value == whole.high == alone.value
    assert alone.low < alone.value < alone.high


def test_a_share_of_nothing_is_said() -> None:
    with pytest.raises(ConfigError, match="share"):
        MembershipAttack(share=0)
