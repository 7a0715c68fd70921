"""Answers scored teacher-forced: one forward pass of a (question, answer) serves every likelihood metric and the energies.

Answers to one question are laid out as a tree (`tree.py`), or run row by row where the convention or the model asks for that.
The LM head is applied at the answers' positions alone and in chunks, so memory does not grow with vocabulary times length; of
each answer a handful of numbers is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from d2unlearn.benchmark.conventions import Convention
from d2unlearn.benchmark.prefix_tree import Tree, grow, pad_trees
from d2unlearn.head import Head, head_of, head_values
from d2unlearn.metrics.membership import min_k, min_k_plus_plus
from d2unlearn.metrics.memorization import exact_memorization, extraction_strength
from d2unlearn.observation import causal_model, last_hidden_states
from d2unlearn.quantities import Entropy, LogProbVariance, LogSumExp, MostLikely, Nll, Quantity
from d2unlearn.runtime import progress
from d2unlearn.schema import Tokens
from d2unlearn.teacher_forcing import teacher_forced

Floats = NDArray[np.float64]
Place = tuple[int, int]
"""(group, place in the group) of an answer."""
BRIEF: tuple[Quantity, ...] = (LogSumExp(), Nll())
THOROUGH: tuple[Quantity, ...] = (*BRIEF, MostLikely(), Entropy(), LogProbVariance())
CHUNK_LOGITS = 2**22
"""Logits held at once: 16 MiB in float32, which stays near the processor."""
TOKENS_A_ROW = 64
"""A pass takes batch_size times so many tokens, whatever the rows' lengths."""
AGREE = 1e-3
"""nats, relative for large ones: how well a model must give the same numbers for a tree as row by row."""


@dataclass(frozen=True)
class Asked:
    """One answer to score. `thorough`: it is the true answer, of which all metrics are wanted; else its likelihood alone.

    `ranked`: its scores are compared with others' to the last bit, so a convention may want it in the file's order.
    """

    tokens: Tokens
    thorough: bool
    ranked: bool = False


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


NOTHING = AnswerScores(0, math.nan, math.nan, math.nan)
"""An answer without a token to predict."""


def score_answers(
    model: PreTrainedModel,
    groups: Sequence[Sequence[Asked]],
    convention: Convention,
    *,
    batch_size: int,
    hidden_token: int | None = None,
    trees: bool = True,
    name: str = "",
) -> Iterator[list[tuple[Place, AnswerScores]]]:
    """Each answer's scores, pass by pass: ((group, place in it), scores). groups: the answers to one question each.

    `hidden_token`: the attention mask hides that id. Without `trees` everything runs row by row. `name`: of the progress bar,
    none without.
    """
    head = head_of(causal_model(model))
    rows, forests = _places(groups, convention, hidden_token, trees)
    layouts: list[Callable[[], _Layout]] = [partial(_rows, groups, part, hidden_token) for part in _batched(rows, batch_size)]
    layouts += [partial(_forest, groups, part, model.dtype) for part in _forests(groups, forests, batch_size * TOKENS_A_ROW)]
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
    asked = [[Asked(row, False) for row in rows if row.answer_length]]
    passes = score_answers(model, asked, Convention("check"), batch_size=len(rows), trees=trees)
    found = dict(pair for part in passes for pair in part)
    return [found[place].nll for place in sorted(found)]


def answer_scores(
    values: Mapping[Quantity, Floats], targets: Sequence[int], convention: Convention, *, thorough: bool
) -> AnswerScores:
    """From the quantities at the n positions that predict an answer's tokens to its scores. values: {quantity: [n]}."""
    nll = values[Nll()]
    answer = teacher_forced(values[LogSumExp()], nll)
    brief = (len(targets), answer.mean_nll, answer.prompt_energy, answer.answer_energy)
    if not thorough:
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
    """What one answer of a layout is, and where its n positions stand in the flattened batch."""

    place: Place
    targets: tuple[int, ...]
    spots: tuple[int, ...]
    thorough: bool


@dataclass(frozen=True)
class _Layout:
    """One forward pass. input_ids [B, T], attention_mask and position_ids as `last_hidden_states` takes them."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None
    parts: tuple[_Part, ...]


def _places(
    groups: Sequence[Sequence[Asked]], convention: Convention, hidden_token: int | None, trees: bool
) -> tuple[list[Place], list[list[Place]]]:
    """What runs row by row, in order: ranked answers of a convention with the file's order, and rows that cannot be in a tree;
    and what is planted, group by group.
    """
    places = [[(g, i) for i in range(len(group))] for g, group in enumerate(groups)]

    def alone(place: Place) -> bool:
        asked = groups[place[0]][place[1]]
        return not trees or hidden_token in asked.tokens.input_ids or (convention.rows_in_file_order and asked.ranked)

    rows = [place for group in places for place in group if alone(place)]
    planted = [[place for place in group if not alone(place)] for group in places]
    if convention.rows_in_file_order:
        rows.sort(key=lambda place: not groups[place[0]][place[1]].ranked)
    else:
        rows.sort(key=lambda place: -len(groups[place[0]][place[1]].tokens.input_ids))
    return rows, [group for group in planted if group]


def _batched(places: Sequence[Place], batch_size: int) -> Iterator[Sequence[Place]]:
    for start in range(0, len(places), batch_size):
        yield places[start : start + batch_size]


def _rows(groups: Sequence[Sequence[Asked]], places: Sequence[Place], hidden_token: int | None) -> _Layout:
    """Rows padded on the right."""
    chosen = [groups[g][i] for g, i in places]
    width = max(len(asked.tokens.input_ids) for asked in chosen)
    ids = torch.zeros(len(chosen), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    parts = []
    for row, (place, asked) in enumerate(zip(places, chosen, strict=True)):
        tokens = torch.tensor(asked.tokens.input_ids, dtype=torch.long)
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1 if hidden_token is None else (tokens != hidden_token).long()
        path = tuple(range(row * width, row * width + len(tokens) - 1))
        parts.append(_part(place, asked, path))
    return _Layout(ids, mask, None, tuple(parts))


def _forests(
    groups: Sequence[Sequence[Asked]], planted: Sequence[list[Place]], tokens: int
) -> Iterator[list[tuple[list[Place], Tree]]]:
    """Trees that share a pass, large ones first, about so many tokens a pass."""
    trees = [grow([groups[g][i].tokens for g, i in places]) for places in planted]
    order = sorted(range(len(trees)), key=lambda index: -len(trees[index].ids))
    while order:
        count = max(1, tokens // max(1, len(trees[order[0]].ids)))
        yield [(planted[index], trees[index]) for index in order[:count]]
        order = order[count:]


def _forest(groups: Sequence[Sequence[Asked]], chosen: Sequence[tuple[list[Place], Tree]], dtype: torch.dtype) -> _Layout:
    ids, mask, positions = pad_trees([tree for _, tree in chosen], dtype)
    parts = []
    for row, (places, tree) in enumerate(chosen):
        start = row * ids.shape[1]
        for (g, i), path in zip(places, tree.paths, strict=True):
            parts.append(_part((g, i), groups[g][i], tuple(start + node for node in path)))
    return _Layout(ids, mask, positions, tuple(parts))


def _part(place: Place, asked: Asked, path: tuple[int, ...]) -> _Part:
    """path: where each token but the last stands; the one at t is predicted at path[t - 1]."""
    predicted = [t for t in range(1, len(asked.tokens.input_ids)) if asked.tokens.answer_mask[t]]
    targets = tuple(asked.tokens.input_ids[t] for t in predicted)
    return _Part(place, targets, tuple(path[t - 1] for t in predicted), asked.thorough)


def _scored(
    model: PreTrainedModel, head: Head, layout: _Layout, convention: Convention
) -> Iterator[tuple[Place, AnswerScores]]:
    device = model.device
    positions = None if layout.position_ids is None else layout.position_ids.to(device)
    hidden = last_hidden_states(model, layout.input_ids.to(device), layout.attention_mask.to(device), positions).flatten(0, 1)
    for thorough, quantities in ((True, THOROUGH), (False, BRIEF)):
        parts = [part for part in layout.parts if part.thorough == thorough]
        edges = {edge: None for part in parts for edge in zip(part.spots, part.targets, strict=True)}
        index = {edge: i for i, edge in enumerate(edges)}
        values = _at(hidden, head, list(edges), quantities)
        for part in parts:
            if not part.targets:
                yield part.place, NOTHING
                continue
            own = [index[edge] for edge in zip(part.spots, part.targets, strict=True)]
            read = {quantity: found[own] for quantity, found in values.items()}
            yield part.place, answer_scores(read, part.targets, convention, thorough=thorough)


def _at(hidden: Tensor, head: Head, edges: Sequence[tuple[int, int]], quantities: Sequence[Quantity]) -> dict[Quantity, Floats]:
    """The quantities at N (position in the flattened batch, target) pairs. hidden: [B * T, H]. Returns {quantity: [N]}."""
    spots = torch.tensor([spot for spot, _ in edges], dtype=torch.long, device=hidden.device)
    targets = torch.tensor([target for _, target in edges], dtype=torch.long, device=hidden.device)
    values = head_values(hidden[spots], head, targets, quantities, chunk_logits=CHUNK_LOGITS)
    return {quantity: found.double().cpu().numpy() for quantity, found in values.items()}
