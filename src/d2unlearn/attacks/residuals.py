"""Where among the activations it hides: add one constant vector, hand the residual stream over, read every layer by the head.

After a layer the residual stream is all that the layers above read. A vector that is the same for every row and every token can
tell no row from another: if it brings the answers back, they were only switched off. The original's residual read by the
model's upper layers shows whether these still know what to make of it; the model's own, read by the original's, how far up the
model still is what the original was. Source: Meng et al. 2022 (2202.05262) and Hong et al. 2024 (2410.06606) for handing over,
Seyitoglu et al. 2024 (2411.02631) for steering an unlearned model, nostalgebraist 2020 (logit lens) and Patil et al. 2023
(2309.17410) for reading layers by the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading, Setting
from d2unlearn.attacks.restoring import same_parameters
from d2unlearn.attacks.scoring import probabilities
from d2unlearn.data.batching import by_length, pad_tokens
from d2unlearn.errors import ConfigError, ModelError
from d2unlearn.layers import Layers, layer_names, layers_of
from d2unlearn.observation import last_hidden_states, observe
from d2unlearn.quantities import HiddenState
from d2unlearn.schema import Tokens

_Output = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Residuals:
    """The budget. layers: at most so many, spread evenly over the depth; None: all.

    vector_rows: forget rows that a constant vector is taken from, none of which is asked. times: how many times it is added.
    """

    layers: int | None = None
    vector_rows: int = 40
    times: tuple[float, ...] = (1.0, 2.0)

    def __post_init__(self) -> None:
        counts = {"layers": self.layers, "vector_rows": self.vector_rows}
        mistakes = [
            f"{name} must be at least 1, not {count}" for name, count in counts.items() if count is not None and count < 1
        ]
        mistakes += [f"times must be positive, not {times}" for times in self.times if times <= 0]
        if mistakes:
            raise ConfigError(mistakes)


def n_layers(model: PreTrainedModel) -> int:
    """Raises `NotShownError` for a model whose layers or last norm cannot be found."""
    return len(_layers(model).blocks)


def read_by_head(model: PreTrainedModel, asked: AskedRows, layer: int, *, batch_size: int = 32) -> Reading:
    """The answer probability of every row where the last norm and the head read the residual after `layer`.

    After the last layer it is the model's own.
    """
    layers = _layers(model)
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _arguments: object, output: _Output) -> None:
        kept[:] = [_state(output)]

    def put(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (kept[0], *arguments[1:])

    with _hooked(layers.blocks[layer].register_forward_hook(keep), layers.norm.register_forward_pre_hook(put)):
        return probabilities(model, asked, {"read by the head after layer": layer}, batch_size=batch_size)


@torch.no_grad()
def mean_shift(
    model: PreTrainedModel, original: PreTrainedModel, rows: Sequence[Tokens], layer: int, *, batch_size: int = 32
) -> Tensor:
    """The original's residual after `layer` minus the model's, [H] in float32: mean over the positions that predict answers."""
    same_parameters(model, original)
    total, count = torch.zeros((), device=model.device), 0
    for indices in by_length([len(row.input_ids) for row in rows], batch_size):
        batch = [rows[index] for index in indices]
        theirs, ours = (_states(each, batch, layer) for each in (original, model))
        total = total + (theirs.to(ours.device) - ours).sum(dim=0)
        count += len(ours)
    if not count:
        raise NotShownError("the rows that a constant vector is taken from have no answers")
    return total / count


def steer(
    model: PreTrainedModel, asked: AskedRows, layer: int, vector: Tensor, times: float = 1.0, *, batch_size: int = 32
) -> Reading:
    """The answer probability of every row with `times` the vector [H] added at every position to the residual after `layer`."""

    def add(_module: nn.Module, _arguments: object, output: _Output) -> _Output:
        return _replaced(output, _state(output) + (times * vector).to(_state(output)))

    with _hooked(_layers(model).blocks[layer].register_forward_hook(add)):
        return probabilities(model, asked, {"constant vector after layer": layer, "times": times}, batch_size=batch_size)


def hand_over(
    giver: PreTrainedModel,
    taker: PreTrainedModel,
    asked: AskedRows,
    layer: int,
    setting: Mapping[str, Setting],
    *,
    batch_size: int = 32,
) -> Reading:
    """The answer probability of every row where the taker's layers above `layer` read the giver's residual."""
    same_parameters(giver, taker)
    kept: list[Tensor] = []

    def ask_giver(_module: nn.Module, _arguments: object, named: Mapping[str, Tensor]) -> None:
        with _hooked(_layers(giver).blocks[layer].register_forward_hook(keep)):
            last_hidden_states(giver, named["input_ids"].to(giver.device), named["attention_mask"].to(giver.device))

    def keep(_module: nn.Module, _arguments: object, output: _Output) -> None:
        kept[:] = [_state(output)]

    def put(_module: nn.Module, _arguments: object, output: _Output) -> _Output:
        return _replaced(output, kept[0].to(_state(output)))

    block = _layers(taker).blocks[layer]
    with _hooked(taker.register_forward_pre_hook(ask_giver, with_kwargs=True), block.register_forward_hook(put)):
        return probabilities(taker, asked, setting, batch_size=batch_size)


def _layers(model: PreTrainedModel) -> Layers:
    try:
        return layers_of(model)
    except ModelError as error:
        raise NotShownError(str(error)) from None


def _states(model: PreTrainedModel, rows: Sequence[Tokens], layer: int) -> Tensor:
    """The residual after a layer at the positions that predict answers, [N, H] in float32."""
    state = HiddenState(layer_names(model)[layer])
    batch = pad_tokens(rows, pad_id=0).to(model.device)
    return observe(model, {"forget": batch}, {"forget": (state,)})["forget"][state].float()


def _state(output: _Output) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _replaced(output: _Output, state: Tensor) -> _Output:
    return state if isinstance(output, Tensor) else (state, *output[1:])


@contextmanager
def _hooked(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
