"""One generation pass that reads, while the model answers greedily, every number that a detector may ask for.

At each position of an answer (0 is the last prompt position; position t's logits choose token t) the quantities asked for are
computed from the logits that generation makes anyway, and the logits are let go. Of the hidden states one vector is kept where
the prompt ends and one mean over the answer; of the layers an energy each at the first positions. Nothing grows with the
vocabulary times the answer's length, and no second forward pass is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from d2unlearn.data.batching import by_length, pad_left
from d2unlearn.errors import ModelError
from d2unlearn.head import head_of, head_values
from d2unlearn.layers import Layers
from d2unlearn.models import generate_plainly
from d2unlearn.observation import causal_model
from d2unlearn.quantities import Chunk, LogSumExp, Quantity
from d2unlearn.runtime import drawing_from, progress
from d2unlearn.stats import Floats

LAYER_POSITIONS = 8
"""The layers' energies are read at so many first positions of an answer."""


@dataclass(frozen=True)
class AnswerTraces:
    """N requests as they were answered. `values`: of each quantity one vector [T] a request, T its answer's tokens.

    `prompt_states`: what the LM head read where the prompt ends, [N, H]; `answer_states`: its mean over the answer, [N, H].
    `layers`: of each request [P, L + 1], the free energy at its first P positions, read at the embeddings and after each of L
    layers; empty where it was not asked for.
    """

    token_ids: tuple[tuple[int, ...], ...]
    values: Mapping[Quantity, tuple[Floats, ...]]
    prompt_states: Floats
    answer_states: Floats
    layers: tuple[Floats, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)

    def take(self, rows: Sequence[int]) -> AnswerTraces:
        """These requests alone, in this order."""
        return AnswerTraces(
            tuple(self.token_ids[row] for row in rows),
            {quantity: tuple(answers[row] for row in rows) for quantity, answers in self.values.items()},
            self.prompt_states[list(rows)],
            self.answer_states[list(rows)],
            tuple(self.layers[row] for row in rows) if self.layers else (),
        )

    def joined(self, other: AnswerTraces) -> AnswerTraces:
        """These requests and then the others, of which the same was read."""
        return AnswerTraces(
            (*self.token_ids, *other.token_ids),
            {quantity: (*answers, *other.values[quantity]) for quantity, answers in self.values.items()},
            np.concatenate([self.prompt_states, other.prompt_states]),
            np.concatenate([self.answer_states, other.answer_states]),
            (*self.layers, *other.layers),
        )


@dataclass(frozen=True)
class Answering:
    """How answers are generated. ends: ids that end one; `layers`: read their energies, too; `sampled`: at temperature 1."""

    max_new_tokens: int
    batch_size: int
    pad_id: int = 0
    ends: tuple[int, ...] = ()
    vocab_rows: int | None = None
    layers: Layers | None = None
    sampled: bool = False
    seed: int = 0


@torch.inference_mode()
def read_answers(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], quantities: Sequence[Quantity], how: Answering, *, name: str = ""
) -> AnswerTraces:
    """Answer each prompt (token ids) and keep what was read, in the order given. `name`: of the progress bar, none without.

    Raises `ModelError` when the model answers with a token beyond `vocab_rows`, or runs without hooks being called.
    """
    traces: dict[int, _Trace] = {}
    batches = list(by_length([len(prompt) for prompt in prompts], how.batch_size))
    with drawing_from(how.seed, model.device):
        for indices in progress(batches, f"answers, {name}", total=len(batches)) if name else batches:
            with _latest_of(model, how) as latest:
                reader = _Reader(model, latest, quantities, how, len(indices))
                answer_batch(model, [prompts[i] for i in indices], how, reader)
            traces |= dict(zip(indices, reader.traces, strict=True))
    rows = [traces[index] for index in range(len(prompts))]
    width = model.config.get_text_config().hidden_size
    return AnswerTraces(
        tuple(tuple(row.tokens) for row in rows),
        {
            quantity: tuple(np.array([v[column] for v in row.values]) for row in rows)
            for column, quantity in enumerate(quantities)
        },
        _stacked([row.prompt_state for row in rows], width),
        _stacked([row.state_sum / len(row.tokens) for row in rows], width),
        tuple(np.array(row.layers) for row in rows) if how.layers is not None else (),
    )


@torch.inference_mode()
def answer_batch(model: PreTrainedModel, prompts: Sequence[Sequence[int]], how: Answering, *readers: StoppingCriteria) -> None:
    """Answer one batch of prompts; what no reader keeps is lost."""
    ids, mask = (t.to(model.device) for t in pad_left(prompts, how.pad_id))
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if how.sampled else {}
    generate_plainly(
        model,
        ids,
        mask,
        max_new_tokens=how.max_new_tokens,
        pad_id=how.pad_id,
        ends=how.ends,
        stopping_criteria=StoppingCriteriaList(readers),
        **drawn,
    )


@dataclass
class _Trace:
    """One request while it is answered. values: of each position one number a quantity."""

    tokens: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    layers: list[list[float]] = field(default_factory=list)
    prompt_state: Floats = field(default_factory=lambda: np.zeros(0))
    state_sum: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass
class _Latest:
    """Of the latest forward pass's last position: logits [B, V], what the head read [B, H], each layer's states [B, H]."""

    logits: Tensor | None = None
    hidden: Tensor | None = None
    states: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def _latest_of(model: PreTrainedModel, how: Answering) -> Iterator[_Latest]:
    """Kept up to date by hooks while the block runs. The embeddings are state 0; no states where `how` asks for no layers."""
    causal, latest = causal_model(model), _Latest()

    def take_logits(_module: nn.Module, _arguments: object, output: Any) -> None:
        latest.logits = (output.logits if hasattr(output, "logits") else output[0])[:, -1, : how.vocab_rows]

    def take_hidden(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        latest.hidden = arguments[0][:, -1]

    def take_embeddings(_module: nn.Module, arguments: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        latest.states[0] = (arguments[0] if arguments else named["hidden_states"])[:, -1]

    def take_state(layer: int, _module: nn.Module, _arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
        latest.states[layer] = (output if isinstance(output, Tensor) else output[0])[:, -1]

    with ExitStack() as stack:
        stack.enter_context(causal.register_forward_hook(take_logits))
        stack.enter_context(causal.get_output_embeddings().register_forward_pre_hook(take_hidden))  # type: ignore[operator]
        if how.layers is not None:
            stack.enter_context(how.layers.blocks[0].register_forward_pre_hook(take_embeddings, with_kwargs=True))
            for layer, block in enumerate(how.layers.blocks, start=1):
                stack.enter_context(block.register_forward_hook(partial(take_state, layer)))
        yield latest


class _Reader(StoppingCriteria):
    """Never stops anything: reads each row that is still being answered, each time a token has been chosen."""

    def __init__(
        self, model: PreTrainedModel, latest: _Latest, quantities: Sequence[Quantity], how: Answering, n_rows: int
    ) -> None:
        self._head = head_of(causal_model(model), vocab_rows=how.vocab_rows)
        self._latest = latest
        self._quantities = quantities
        self._how = how
        self._going = list(range(n_rows))
        self.traces = [_Trace() for _ in range(n_rows)]

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """input_ids: [B, T + 1], the token that was just chosen last."""
        if self._going:
            self._read(input_ids[:, -1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def _read(self, chosen: Tensor) -> None:
        logits, hidden = self._latest.logits, self._latest.hidden
        if logits is None or hidden is None:
            raise ModelError("the model ran without its forward hooks being called, so nothing could be read")
        rows = torch.tensor(self._going, device=logits.device)
        targets = chosen[rows]
        if int(targets.max()) >= logits.shape[1]:
            raise ModelError("the model answered with a token that its tokenizer does not have")
        chunk = Chunk(logits[rows].float(), targets)
        columns = [quantity.of(chunk).double().tolist() for quantity in self._quantities]
        states = hidden[rows].double().cpu().numpy()
        layers = self._layer_energies(rows) if len(self.traces[self._going[0]].tokens) < LAYER_POSITIONS else []
        for place, (index, token) in enumerate(zip(self._going, targets.tolist(), strict=True)):
            trace = self.traces[index]
            trace.prompt_state = trace.prompt_state if trace.tokens else states[place]
            trace.state_sum = trace.state_sum + states[place] if trace.tokens else states[place]
            trace.tokens.append(token)
            trace.values.append([column[place] for column in columns])
            trace.layers += layers[place : place + 1]
        self._going = [index for index in self._going if self.traces[index].tokens[-1] not in self._how.ends]

    def _layer_energies(self, rows: Tensor) -> list[list[float]]:
        """Free energy of the rows at the embeddings and after each layer, through the norm and the head: [n, L + 1]."""
        if self._how.layers is None:
            return []
        energies = []
        for layer in sorted(self._latest.states):
            hidden = self._how.layers.norm(self._latest.states[layer][rows])
            targets = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
            energies.append(-head_values(hidden, self._head, targets, [LogSumExp()])[LogSumExp()])
        return torch.stack(energies, dim=1).tolist()


def _stacked(states: Sequence[Floats], width: int) -> Floats:
    return np.stack(states) if states else np.zeros((0, width))
