"""Answers scored teacher-forced: one forward pass of a (question, answer) serves every likelihood metric and the energies.

Answers to one question are laid out as a tree (`prefix_tree.py`), or run row by row where the convention or the model asks
for that. The LM head is applied at the answers' positions alone and in chunks, so memory does not grow with vocabulary times
length; of each answer a handful of numbers is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from d2unlearn.benchmark.conventions import Convention
from d2unlearn.benchmark.prefix_tree import Tree, grow, pad_trees
from d2unlearn.data.batching import pad_tokens
from d2unlearn.head import Head, head_of, head_values
from d2unlearn.metrics.membership import min_k, min_k_plus_plus
from d2unlearn.metrics.memorization import exact_memorization, extraction_strength
from d2unlearn.observation import causal_model, last_hidden_states
from d2unlearn.quantities import Entropy, LogProbVariance, LogSumExp, MostLikely, Nll, Quantity
from d2unlearn.runtime import progress
from d2unlearn.schema import Tokens
from d2unlearn.stats import Floats
from d2unlearn.teacher_forcing import teacher_forced

BRIEF: tuple[Quantity, ...] = (LogSumExp(), Nll())
THOROUGH: tuple[Quantity, ...] = (*BRIEF, MostLikely(), Entropy(), LogProbVariance())
PASS_LOGITS = 2**22
"""Logits held at once: 16 MiB in float32, which stays near the processor."""
TOKENS_A_ROW = 64
"""A pass takes batch_size times so many tokens, whatever the rows' lengths."""
AGREE = 1e-3
"""nats, relative for large ones: how well a model must give the same numbers for a tree as row by row."""


@dataclass(frozen=True)
class ScoreRequest:
    """One answer to score. `thorough`: it is the true answer, of which all metrics are wanted; else its likelihood alone.

    `ranked`: its scores are compared with others' to the last bit, so a convention may want it in the file's order. Answers to
    one `question` may share a tree.
    """

    tokens: Tokens
    thorough: bool
    ranked: bool = False
    question: int = 0

    @property
    def key(self) -> object:
        """The tokens, where the answer begins, and what is wanted."""
        mask = self.tokens.answer_mask
        return [self.tokens.input_ids, mask.index(True) if True in mask else None, self.thorough]


@dataclass(frozen=True)
class AnswerScores:
    """One answer, teacher-forced after its prompt. n: its predicted tokens; likelihoods and energies in nats.

    `right`: how many of the answer's first tokens greedy decoding gives; `instead`: the token that it gives after those, -1
    when the whole answer is right. Both, and the metrics from `extraction_strength` on, are there for thorough answers only.
    """

    n: int
    nll: float
    prompt_energy: float
    answer_energy: float
    extraction_strength: float = math.nan
    exact_memorization: float = math.nan
    min_k: float = math.nan
    min_k_plus_plus: float = math.nan
    right: int = 0
    instead: int = -1


def score_answers(
    model: PreTrainedModel,
    requests: Sequence[ScoreRequest],
    convention: Convention,
    *,
    batch_size: int,
    hidden_token: int | None = None,
    trees: bool = True,
    name: str = "",
) -> Iterator[list[tuple[ScoreRequest, AnswerScores]]]:
    """Each request's scores, pass by pass.

    `hidden_token`: the attention mask hides that id. Without `trees` everything runs row by row. `name`: of the progress bar,
    none without.
    """
    head = head_of(causal_model(model))
    rows, families = _arranged(requests, convention, hidden_token, trees)
    parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    layouts: list[Callable[[], _Layout]] = [partial(_rows, part, hidden_token) for part in parts]
    layouts += [partial(_forest, part, model.dtype) for part in _forests(families, batch_size * TOKENS_A_ROW)]
    for layout in progress(layouts, f"likelihoods, {name}", total=len(layouts)) if name else layouts:
        with torch.no_grad():
            yield list(_scored(model, head, layout(), convention))


def trees_agree(model: PreTrainedModel, rows: Sequence[Tokens]) -> bool:
    """Whether a model gives the same likelihoods for a tree as row by row: it takes positions and a mask of its own.

    Models that mix tokens other than by attention (state spaces) do not, nor do some attention kernels.
    """
    try:
        together, apart = (_likelihoods(model, rows, trees=trees) for trees in (True, False))
    except (RuntimeError, ValueError, TypeError):
        return False
    relative = 30 * AGREE if model.dtype in (torch.float16, torch.bfloat16) else AGREE
    return all(math.isclose(a, b, rel_tol=relative, abs_tol=relative) for a, b in zip(together, apart, strict=True))


def _likelihoods(model: PreTrainedModel, rows: Sequence[Tokens], *, trees: bool) -> list[float]:
    requests = [ScoreRequest(row, thorough=False) for row in rows if row.answer_length]
    passes = score_answers(model, requests, Convention("check"), batch_size=len(rows), trees=trees)
    losses = {request.tokens: scores.nll for part in passes for request, scores in part}
    return [losses[request.tokens] for request in requests]


def answer_scores(
    values: Mapping[Quantity, Floats], targets: Sequence[int], convention: Convention, *, thorough: bool
) -> AnswerScores:
    """From the quantities at the n positions that predict an answer's tokens to its scores. values: {quantity: [n]}."""
    nll = values[Nll()]
    answer = teacher_forced(values[LogSumExp()], nll)
    brief = (len(targets), answer.mean_nll, answer.prompt_energy, answer.answer_energy)
    if not thorough or not len(targets):
        return AnswerScores(*brief)
    given = values[MostLikely()].astype(np.int64)
    correct = given == np.asarray(targets)
    right = len(correct) if correct.all() else int(correct.argmin())
    read = slice(0, len(targets) - 1 if convention.drops_last_token else None)
    entropy, variance = values[Entropy()][read], values[LogProbVariance()][read]
    scores = (
        extraction_strength(correct[read].tolist(), floor=convention.strength_has_floor),
        exact_memorization(correct[read].tolist()),
        min_k(nll[read]),
        min_k_plus_plus(nll[read], entropy, variance),
    )
    return AnswerScores(*brief, *scores, right=right, instead=-1 if right == len(correct) else int(given[right]))


@dataclass(frozen=True)
class _Part:
    """A request of a layout, and where the n positions that predict its targets stand in the flattened batch."""

    request: ScoreRequest
    targets: tuple[int, ...]
    spots: tuple[int, ...]


@dataclass(frozen=True)
class _Layout:
    """One forward pass. input_ids [B, T], attention_mask and position_ids as `last_hidden_states` takes them."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None
    parts: tuple[_Part, ...]


def _arranged(
    requests: Sequence[ScoreRequest], convention: Convention, hidden_token: int | None, trees: bool
) -> tuple[list[ScoreRequest], list[list[ScoreRequest]]]:
    """What runs row by row, in order: ranked answers of a convention with the file's order, and rows that cannot be in a tree;
    and what may share a tree, question by question.
    """
    rows, families = list[ScoreRequest](), dict[int, list[ScoreRequest]]()
    for request in requests:
        alone = hidden_token in request.tokens.input_ids or (convention.rows_in_file_order and request.ranked)
        (families.setdefault(request.question, []) if trees and not alone else rows).append(request)
    if convention.rows_in_file_order:
        rows.sort(key=lambda request: not request.ranked)
    else:
        rows.sort(key=lambda request: -len(request.tokens.input_ids))
    return rows, list(families.values())


def _rows(requests: Sequence[ScoreRequest], hidden_token: int | None) -> _Layout:
    """Rows padded on the right."""
    batch = pad_tokens([request.tokens for request in requests], pad_id=0)
    ids, mask = batch.input_ids, batch.attention_mask
    if hidden_token is not None:
        mask = mask * (ids != hidden_token)
    width = ids.shape[1]
    parts = (_part(request, range(row * width, (row + 1) * width)) for row, request in enumerate(requests))
    return _Layout(ids, mask, None, tuple(parts))


def _forests(families: Sequence[list[ScoreRequest]], tokens: int) -> Iterator[list[tuple[list[ScoreRequest], Tree]]]:
    """Trees that share a pass, large ones first, about so many tokens a pass."""
    trees = [(family, grow([request.tokens for request in family])) for family in families]
    trees.sort(key=lambda planted: -len(planted[1].ids))
    while trees:
        count = max(1, tokens // max(1, len(trees[0][1].ids)))
        yield trees[:count]
        trees = trees[count:]


def _forest(planted: Sequence[tuple[list[ScoreRequest], Tree]], dtype: torch.dtype) -> _Layout:
    ids, mask, positions = pad_trees([tree for _, tree in planted], dtype)
    parts = []
    for row, (family, tree) in enumerate(planted):
        start = row * ids.shape[1]
        parts += [_part(r, [start + node for node in path]) for r, path in zip(family, tree.paths, strict=True)]
    return _Layout(ids, mask, positions, tuple(parts))


def _part(request: ScoreRequest, path: Sequence[int]) -> _Part:
    """path: where each token but the last stands; the one at t is predicted at path[t - 1]."""
    ids, of_answer = request.tokens.input_ids, request.tokens.answer_mask
    predicted = [t for t in range(1, len(ids)) if of_answer[t]]
    return _Part(request, tuple(ids[t] for t in predicted), tuple(path[t - 1] for t in predicted))


def _scored(
    model: PreTrainedModel, head: Head, layout: _Layout, convention: Convention
) -> Iterator[tuple[ScoreRequest, AnswerScores]]:
    device = model.device
    positions = None if layout.position_ids is None else layout.position_ids.to(device)
    hidden = last_hidden_states(model, layout.input_ids.to(device), layout.attention_mask.to(device), positions).flatten(0, 1)
    for thorough, quantities in ((True, THOROUGH), (False, BRIEF)):
        parts = [part for part in layout.parts if part.request.thorough == thorough]
        edges = {edge: None for part in parts for edge in zip(part.spots, part.targets, strict=True)}
        index = {edge: i for i, edge in enumerate(edges)}
        values = _at(hidden, head, list(edges), quantities)
        for part in parts:
            own = [index[edge] for edge in zip(part.spots, part.targets, strict=True)]
            read = {quantity: column[own] for quantity, column in values.items()}
            yield part.request, answer_scores(read, part.targets, convention, thorough=thorough)


def _at(hidden: Tensor, head: Head, edges: Sequence[tuple[int, int]], quantities: Sequence[Quantity]) -> dict[Quantity, Floats]:
    """The quantities at N (position in the flattened batch, target) pairs. hidden: [B * T, H]. Returns {quantity: [N]}."""
    spots = torch.tensor([spot for spot, _ in edges], dtype=torch.long, device=hidden.device)
    targets = torch.tensor([target for _, target in edges], dtype=torch.long, device=hidden.device)
    values = head_values(hidden[spots], head, targets, quantities, chunk_logits=PASS_LOGITS)
    return {quantity: column.double().cpu().numpy() for quantity, column in values.items()}
