"""One generation pass that reads, while the model answers greedily, every number that an index may ask for.

At each position of an answer (0 is the last prompt position; position t's logits choose token t) the quantities asked for are
computed from the logits that generation makes anyway, and the logits are let go. Of the hidden states one vector is kept where
the prompt ends and one mean over the answer; of the layers an energy each at the first positions. Nothing grows with the
vocabulary times the answer's length, and no second forward pass is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from d2unlearn.data.batching import by_length, pad_left
from d2unlearn.errors import ModelError
from d2unlearn.head import Head, head_of, head_values
from d2unlearn.models import generate_plainly
from d2unlearn.observation import causal_model
from d2unlearn.quantities import Chunk, LogSumExp, Quantity
from d2unlearn.runtime import drawing_from, progress

Floats = NDArray[np.float64]
LAYER_POSITIONS = 8
"""The layers' energies are read at so many first positions of an answer."""


@dataclass(frozen=True)
class Reads:
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

    def take(self, rows: Sequence[int]) -> Reads:
        """These requests alone, in this order."""
        return Reads(
            tuple(self.token_ids[row] for row in rows),
            {quantity: tuple(each[row] for row in rows) for quantity, each in self.values.items()},
            self.prompt_states[list(rows)],
            self.answer_states[list(rows)],
            tuple(self.layers[row] for row in rows) if self.layers else (),
        )

    def joined(self, other: Reads) -> Reads:
        """These requests and then the others, of which the same was read."""
        return Reads(
            (*self.token_ids, *other.token_ids),
            {quantity: (*each, *other.values[quantity]) for quantity, each in self.values.items()},
            np.concatenate([self.prompt_states, other.prompt_states]),
            np.concatenate([self.answer_states, other.answer_states]),
            (*self.layers, *other.layers),
        )


@dataclass(frozen=True)
class Layers:
    """The modules whose states can be read through the LM head: the decoder's layers, then the norm before the head."""

    blocks: tuple[nn.Module, ...]
    norm: nn.Module


@dataclass(frozen=True)
class Answering:
    """How answers are generated. ends: ids that end one; `layers`: read their energies, too; `sampled`: at temperature 1."""

    max_new_tokens: int
    batch_size: int
    pad_id: int
    ends: tuple[int, ...]
    vocab_rows: int | None = None
    layers: Layers | None = None
    sampled: bool = False
    seed: int = 0


@torch.inference_mode()
def read_answers(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], quantities: Sequence[Quantity], how: Answering, *, name: str = ""
) -> Reads:
    """Answer each prompt (token ids) and keep what was read, in the order given. `name`: of the progress bar, none without.

    Raises `ModelError` when the model answers with a token beyond `vocab_rows`, or runs without hooks being called.
    """
    found: dict[int, _Read] = {}
    batches = list(by_length([len(prompt) for prompt in prompts], how.batch_size))
    with drawing_from(how.seed, model.device):
        for indices in progress(batches, f"answers, {name}", total=len(batches)) if name else batches:
            found |= dict(zip(indices, _answered(model, [prompts[i] for i in indices], quantities, how), strict=True))
    rows = [found[index] for index in range(len(prompts))]
    width = model.config.get_text_config().hidden_size
    return Reads(
        tuple(tuple(row.tokens) for row in rows),
        {
            quantity: tuple(np.array([v[place] for v in row.values]) for row in rows)
            for place, quantity in enumerate(quantities)
        },
        _stacked([row.prompt_state for row in rows], width),
        _stacked([row.state_sum / len(row.tokens) for row in rows], width),
        tuple(np.array(row.layers) for row in rows) if how.layers is not None else (),
    )


def layers_of(model: PreTrainedModel) -> Layers:
    """The decoder's layers and its last norm. Raises `ModelError` for a model that is built in another way.

    The layers are the longest list of modules; the norm is the one that stands beside it, after everything else.
    """
    causal = causal_model(model)
    lists = {name: part for name, part in causal.named_modules() if isinstance(part, nn.ModuleList)}
    longest = max(lists, key=lambda name: len(lists[name]), default=None)
    if longest is None:
        raise ModelError(f"{type(causal).__name__} has no list of layers")
    beside = causal.get_submodule(longest.rpartition(".")[0]).children()
    norms = [part for part in beside if "norm" in type(part).__name__.lower()]
    if not norms:
        raise ModelError(f"{type(causal).__name__} has no norm beside its layers")
    return Layers(tuple(lists[longest]), norms[-1])


@dataclass
class _Read:
    """One request while it is answered. values: of each position one number a quantity."""

    tokens: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    layers: list[list[float]] = field(default_factory=list)
    prompt_state: Floats = field(default_factory=lambda: np.zeros(0))
    state_sum: Floats = field(default_factory=lambda: np.zeros(0))


def _answered(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], quantities: Sequence[Quantity], how: Answering
) -> list[_Read]:
    ids, mask = (t.to(model.device) for t in pad_left(prompts, how.pad_id))
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if how.sampled else {"do_sample": False}
    with _Taps(model, how) as taps:
        reader = _Reader(taps, quantities, how, len(prompts))
        generate_plainly(
            model,
            ids,
            mask,
            max_new_tokens=how.max_new_tokens,
            pad_id=how.pad_id,
            ends=how.ends,
            stopping_criteria=StoppingCriteriaList([reader]),
            **drawn,
        )
    return reader.rows


class _Taps:
    """While entered, keeps of the latest forward pass the last position's logits [B, V], head input [B, H] and layer states."""

    def __init__(self, model: PreTrainedModel, how: Answering) -> None:
        self._causal = causal_model(model)
        self._how = how
        self._stack = ExitStack()
        self.head: Head = head_of(self._causal, vocab_rows=how.vocab_rows)
        self.logits: Tensor | None = None
        self.hidden: Tensor | None = None
        self.states: dict[int, Tensor] = {}

    def __enter__(self) -> _Taps:
        linear = self._causal.get_output_embeddings()  # type: ignore[operator]
        handles = [
            self._causal.register_forward_hook(self._take_logits),
            linear.register_forward_pre_hook(self._take_hidden),
        ]
        if self._how.layers is not None:
            first = self._how.layers.blocks[0]
            handles.append(first.register_forward_pre_hook(self._take_embeddings, with_kwargs=True))
            for place, block in enumerate(self._how.layers.blocks):
                handles.append(block.register_forward_hook(self._take_state(place + 1)))
        for handle in handles:
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _take_logits(self, _module: nn.Module, _arguments: object, output: Any) -> None:
        logits = output.logits if hasattr(output, "logits") else output[0]
        self.logits = logits[:, -1] if self._how.vocab_rows is None else logits[:, -1, : self._how.vocab_rows]

    def _take_hidden(self, _module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.hidden = arguments[0][:, -1]

    def _take_embeddings(self, _module: nn.Module, arguments: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        self.states[0] = (arguments[0] if arguments else named["hidden_states"])[:, -1]

    def _take_state(self, place: int) -> Any:
        def hook(_module: nn.Module, _arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self.states[place] = (output if isinstance(output, Tensor) else output[0])[:, -1]

        return hook

    def layer_energies(self, rows: Tensor) -> list[list[float]]:
        """Free energy of the rows at the embeddings and after each layer, through the norm and the head: [n, L + 1]."""
        assert self._how.layers is not None
        energies = []
        for place in sorted(self.states):
            hidden = self._how.layers.norm(self.states[place][rows])
            targets = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
            energies.append(-head_values(hidden, self.head, targets, [LogSumExp()])[LogSumExp()])
        return torch.stack(energies, dim=1).tolist()


class _Reader(StoppingCriteria):
    """Never stops anything: reads each row that is still being answered, each time a token has been chosen."""

    def __init__(self, taps: _Taps, quantities: Sequence[Quantity], how: Answering, n_rows: int) -> None:
        self._taps = taps
        self._quantities = quantities
        self._how = how
        self._going = list(range(n_rows))
        self.rows = [_Read() for _ in range(n_rows)]

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """input_ids: [B, T + 1], the token that was just chosen last."""
        if self._going:
            self._read(input_ids[:, -1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def _read(self, chosen: Tensor) -> None:
        logits, hidden = self._taps.logits, self._taps.hidden
        if logits is None or hidden is None:
            raise ModelError("the model ran without its forward hooks being called, so nothing could be read")
        rows = torch.tensor(self._going, device=logits.device)
        targets = chosen[rows]
        if int(targets.max()) >= logits.shape[1]:
            raise ModelError("the model answered with a token that its tokenizer does not have")
        chunk = Chunk(logits[rows].float(), targets)
        columns = [quantity.of(chunk).double().tolist() for quantity in self._quantities]
        states = hidden[rows].double().cpu().numpy()
        layered = self._how.layers is not None and len(self.rows[self._going[0]].tokens) < LAYER_POSITIONS
        layers = self._taps.layer_energies(rows) if layered else []
        for place, (index, token) in enumerate(zip(self._going, targets.tolist(), strict=True)):
            row = self.rows[index]
            row.prompt_state = row.prompt_state if row.tokens else states[place]
            row.state_sum = row.state_sum + states[place] if row.tokens else states[place]
            row.tokens.append(token)
            row.values.append([column[place] for column in columns])
            row.layers += layers[place : place + 1]
        self._going = [index for index in self._going if self.rows[index].tokens[-1] not in self._how.ends]


def _stacked(states: Sequence[Floats], width: int) -> Floats:
    return np.stack(states) if states else np.zeros((0, width))
