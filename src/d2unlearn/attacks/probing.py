"""Linear probes: whether the state at the end of a prompt tells the true answer from wrong ones, layer by layer.

An unlearned model may say nothing of what its layers still hold. A probe reads one layer's output at the last prompt position,
h, and an answer's words, e (the mean of its tokens' embeddings, rare tokens counting more), and prefers the true answer to a
wrong one where h' W (e - e_wrong) > 0. W is fitted by ridge regression of these numbers on 1, on half of the groups, and asked
on the other half; then the other way round. So a probe cannot have learnt an answer that it is asked for: it can only have
learnt how answers are held.

What a question gives away by itself, a model that never knew gives away too. Control: the same probe where every row has the
answers of a row of another group; what it finds is the answers' style, or chance (Hewitt and Liang 2019, 1909.03368: a probe is
to be read by how far it stands above its control task).

Source: linear probes, Alain and Bengio 2016 (1610.01644), here bilinear, in closed form.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading, Setting, reading_of
from d2unlearn.data.batching import by_length, pad_tokens
from d2unlearn.errors import ConfigError, ModelError
from d2unlearn.layers import layer_names
from d2unlearn.observation import causal_model, observe
from d2unlearn.quantities import HiddenState
from d2unlearn.schema import Example, Tokens

WrongAnswers = Literal["its own", "of alike questions"]
"""Where wrong answers come from: the row's columns, or the answers to the most alike questions of other groups."""
Choices = tuple[tuple[int, ...], ...]
"""Token ids of a row's true answer, then of wrong ones; none where the row is not asked."""
FEWEST_GROUPS = 4
"""With fewer there is no half to learn from and another to ask."""


@dataclass(frozen=True)
class LinearProbes:
    """wrong: wrong answers a row, at most; ridge: the penalty on W, as a share of the pairs of answers that it is fitted on."""

    wrong: int = 5
    ridge: float = 0.01

    def __post_init__(self) -> None:
        if self.wrong < 1 or self.ridge <= 0:
            raise ConfigError(["a probe needs at least one wrong answer and a ridge above 0"])


def own_answers(row: Example) -> tuple[str, list[str]]:
    """A row's true answer and its wrong ones, none where it has none. All are worded alike.

    `perturbed_answer` (TOFU: one text or several, worded as `paraphrased_answer` where there is one), or those of `choices`
    that are not the answer.
    """
    perturbed, options = row.extra.get("perturbed_answer"), row.extra.get("choices")
    if perturbed:
        worded = row.extra.get("paraphrased_answer")
        return worded if isinstance(worded, str) else row.answer, _texts(perturbed)
    return row.answer, [text for text in _texts(options) if text != row.answer]


def answer_choices(
    rows: Sequence[Example],
    groups: Sequence[str],
    source: WrongAnswers,
    probes: LinearProbes,
    text_ids: Callable[[str], list[int]],
    *,
    seed: int,
) -> list[Choices]:
    """The answers that each row's true one is to be told from.

    Of alike questions: those with the largest share of tokens in common, within the row's half. Of such answers counts what
    their own question does not say, so that names alone tell nothing.
    """
    if source == "its own":
        own = [own_answers(row) for row in rows]
        return [_choices([true, *wrong[: probes.wrong]], text_ids) for true, wrong in own]
    halves = first_half(groups, seed=seed)
    asked = [frozenset(text_ids(f" {row.question}")) for row in rows]
    told = [_beyond(text_ids(f" {row.answer}"), question) for row, question in zip(rows, asked, strict=True)]
    choices = []
    for index, words in enumerate(told):
        others = [j for j in range(len(rows)) if halves[j] == halves[index] and groups[j] != groups[index]]
        alike = sorted(others, key=lambda j: -_overlap(asked[index], asked[j]))
        choices.append((words, *(told[j] for j in alike[: probes.wrong])) if alike else ())
    return choices


def first_half(groups: Sequence[str], *, seed: int) -> list[bool]:
    """Whether each row's group is in the half drawn by the seed. Raises `NotShownError` for too few groups."""
    names = sorted(set(groups))
    if len(names) < FEWEST_GROUPS:
        raise NotShownError(f"probes learn on half of the groups and are asked on the other: {len(names)} are too few")
    Random(seed).shuffle(names)
    first = set(names[: len(names) // 2])
    return [group in first for group in groups]


def other_rows(groups: Sequence[str], halves: Sequence[bool], *, seed: int) -> list[int]:
    """For each row another of its half, each taken once and, unless one group has most of the half, of another group."""
    taken = [0] * len(groups)
    for half in (True, False):
        names = sorted({group for group, own in zip(groups, halves, strict=True) if own == half})
        Random(seed).shuffle(names)
        members = [index for name in names for index, group in enumerate(groups) if group == name]
        largest = max(Counter(groups[index] for index in members).values(), default=0)
        for place, index in enumerate(members):
            taken[index] = members[(place + largest) % len(members)]
    return taken


def probe_readings(
    model: PreTrainedModel,
    asked: AskedRows,
    choices: Sequence[Choices],
    source: WrongAnswers,
    probes: LinearProbes,
    *,
    control: bool = False,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Reading]:
    """One reading a layer: the share of a row's wrong answers that the true one is preferred to. Chance is 0.5.

    control: every row has another's answers. A row with fewer than two answers, or with no room for one, is not asked.
    """
    used = [index for index, row in enumerate(asked.tokens) if len(choices[index]) > 1 and row.answer_length and _begins(row)]
    groups, split = [asked.groups[index] for index in used], first_half(asked.groups, seed=seed)
    halves = [split[index] for index in used]
    if len(set(halves)) < 2:
        raise NotShownError("half of the groups have no row with a prompt and a wrong answer, so that no probe can be taught")
    vectors = answer_vectors([choices[index] for index in used], _embeddings(model))
    differences, of_row = pair_differences(vectors)
    order = other_rows(groups, halves, seed=seed) if control else list(range(len(used)))
    readings = []
    for layer, states in enumerate(layer_states(model, [asked.tokens[index] for index in used], batch_size=batch_size)):
        picked = picked_shares(states[order], differences, of_row, torch.tensor(halves), probes.ridge).tolist()
        found = dict(zip(used, picked, strict=True))
        setting: dict[str, Setting] = {"layer": layer, "wrong answers": source, "chance": 0.5}
        setting |= {"control": "another row's answers"} if control else {}
        values = [found.get(index, math.nan) for index in range(len(asked.tokens))]
        reading = reading_of(asked, setting, "picked", values)
        left = len(values) - len(used)
        readings.append(replace(reading, not_asked={"no prompt, or no wrong answer": left}) if left else reading)
    return readings


@torch.no_grad()
def layer_states(model: PreTrainedModel, rows: Sequence[Tokens], *, batch_size: int = 32) -> list[Tensor]:
    """Each layer's output at the last prompt position, [N, H] in float64 on the CPU, first layer first.

    Every row has a prompt and an answer. Raises `NotShownError` for a model whose layers are not found.
    """
    try:
        wanted = [HiddenState(name) for name in layer_names(model)]
    except ModelError as error:
        raise NotShownError(str(error)) from None
    cut = [_with_one_answer_token(row) for row in rows]
    found: list[list[Tensor]] = [[torch.empty(0)] * len(rows) for _ in wanted]
    for indices in by_length([len(row.input_ids) for row in cut], batch_size):
        batch = pad_tokens([cut[index] for index in indices], pad_id=0).to(model.device)
        states = observe(model, {"forget": batch}, {"forget": wanted})["forget"]
        for layer, state in zip(found, wanted, strict=True):
            for index, vector in zip(indices, states[state].double().cpu(), strict=True):
                layer[index] = vector
    return [torch.stack(layer) for layer in found]


def answer_vectors(choices: Sequence[Choices], embeddings: Tensor) -> list[Tensor]:
    """The answers of each row, [its number, E] each: means of their tokens' embeddings, less the mean of all embeddings.

    A token weighs log((N + 1) / (1 + true answers that have it)). embeddings: [V, E].
    """
    counts = Counter(token for answers in choices for token in set(answers[0]))
    centre = embeddings.double().mean(dim=0)

    def vector(ids: tuple[int, ...]) -> Tensor:
        weights = torch.tensor([math.log((len(choices) + 1) / (1 + counts[token])) for token in ids], dtype=torch.float64)
        rows = embeddings[list(ids)].double().cpu() - centre.cpu()
        return (weights.unsqueeze(1) * rows).sum(dim=0) / weights.sum().clamp(min=1e-9)

    return [torch.stack([vector(ids) for ids in answers]) for answers in choices]


def pair_differences(vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """True answer less each wrong one, of length 1 (0 where both are the same), [P, E]; and the row of each pair, [P]."""
    differences = torch.cat([answers[:1] - answers[1:] for answers in vectors])
    of_row = torch.cat([torch.full((len(answers) - 1,), row) for row, answers in enumerate(vectors)])
    return differences / differences.norm(dim=1, keepdim=True).clamp(min=1e-9), of_row


def picked_shares(states: Tensor, differences: Tensor, of_row: Tensor, halves: Tensor, ridge: float) -> Tensor:
    """For each row the share of its pairs whose true answer is preferred, ties half, by a probe of the other half: [N].

    states: [N, H]; differences: [P, E]; of_row: [P]; halves: [N] bool.
    """
    preferred = torch.zeros(len(differences), dtype=torch.float64)
    for asked_half in (halves, ~halves):
        asked = asked_half[of_row]
        margins = probe_margins(states, differences, of_row, ~asked_half, ridge)
        preferred[asked] = (margins[asked].sign() + 1) / 2
    pairs = torch.bincount(of_row, minlength=len(states))
    return torch.zeros(len(states), dtype=torch.float64).index_add(0, of_row, preferred) / pairs


def probe_margins(states: Tensor, differences: Tensor, of_row: Tensor, learnt: Tensor, ridge: float) -> Tensor:
    """h' W d of every pair, [P]: W minimises sum (1 - h' W d)^2 + ridge * n |W|^2 over the n pairs of `learnt` rows.

    Solved in its dual form, n x n. States are standardised by the learnt rows and have a mean square length of 1 there.
    """
    states = _standardised(states, learnt)
    mine = learnt[of_row]
    kernel = (states @ states.T)[of_row][:, of_row[mine]] * (differences @ differences[mine].T)
    n = int(mine.sum())
    penalty = ridge * n * torch.eye(n, dtype=kernel.dtype)
    weights: Tensor = torch.linalg.solve(kernel[mine] + penalty, torch.ones(n, dtype=kernel.dtype))
    return kernel @ weights


def _standardised(states: Tensor, learnt: Tensor) -> Tensor:
    """A dimension that does not vary over the learnt rows is left out."""
    centre, spread = states[learnt].mean(dim=0), states[learnt].std(dim=0, correction=0)
    varies = spread > 1e-9 * spread.max()
    scale = spread[varies] * max(1, int(varies.sum())) ** 0.5
    standard: Tensor = (states[:, varies] - centre[varies]) / scale
    return standard


def _with_one_answer_token(row: Tokens) -> Tokens:
    """Up to the answer's first token, so that the last prompt position is the only one that predicts."""
    end = row.answer_mask.index(True) + 1
    return Tokens(row.example_id, row.input_ids[:end], row.answer_mask[:end])


def _begins(row: Tokens) -> bool:
    """Whether something stands before the answer."""
    return not row.answer_mask[0]


def _embeddings(model: PreTrainedModel) -> Tensor:
    weight: Tensor = causal_model(model).get_input_embeddings().weight.detach()  # type: ignore[operator]
    return weight


def _choices(texts: Sequence[str], text_ids: Callable[[str], list[int]]) -> Choices:
    return tuple(tuple(text_ids(f" {text}")) for text in texts) if len(texts) > 1 else ()


def _beyond(answer: Sequence[int], question: frozenset[int]) -> tuple[int, ...]:
    """The answer's tokens that the question does not have; all where it has all."""
    return tuple(token for token in answer if token not in question) or tuple(answer)


def _overlap(first: frozenset[int], second: frozenset[int]) -> float:
    """Jaccard's index."""
    return len(first & second) / max(1, len(first | second))


def _texts(value: object) -> list[str]:
    """A text, or those of a list."""
    listed = value if isinstance(value, list | tuple) else [value]
    return [text for text in listed if isinstance(text, str) and text]
