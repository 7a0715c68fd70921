"""RMU: steer the forgotten answers' hidden states at one layer into a random direction, and hold the retained ones in place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from d2unlearn.energy import at_least_float32
from d2unlearn.errors import ConfigError, ModelError
from d2unlearn.layers import layer_names
from d2unlearn.methods.base import NOT_NEGATIVE, ConventionName, Needs, NotNegative, check_parameters
from d2unlearn.methods.forget_retain import TwoTerms, answer_positions, retain_loss, retain_needs
from d2unlearn.observation import Observed, causal_model
from d2unlearn.quantities import HiddenState
from d2unlearn.schema import Role

DEPTH = 7 / 32
"""The published layer, 7 of 32, as a share of the depth."""
LAYERS_TRAINED = 3
"""That layer and the two before it."""


@dataclass(frozen=True, kw_only=True)
class RMU(TwoTerms):
    """L = gamma D(forget, steering_coeff u) + alpha D(retain, h_ref), with h the output of the layer named.

        D(x, target) = mean_rows mean_positions mean_H (h - target)^2       over answer positions

    u is a unit vector; h_ref, the reference's h, comes from the reference pass. Only parameters that are named are trained.

    Parameters (defaults: steering_coeff 2, gamma 1, alpha 1, EMBED_DIFF)
        module_regex             the module whose output is steered (`model.named_modules()`); None: layer 7 of 32, or as deep
        trainable_params_regex   which parameters are trained; None: all of that layer and of the two before it
        steering_coeff           length of the vector steered to
        control_direction        its direction, H numbers; None: drawn with `control_seed`, each number uniform in [0, 1)
        control_seed             seed of that draw
        retain_loss_type         EMBED_DIFF (D above), or NLL or KL as in `ForgetRetain`
        gamma, alpha             weights of the two terms
        convention               "open-unlearning" takes the answer tokens' own positions, not those that predict them, and
                                 divides a row's sum by every row's length in turn: mean_ij sum_i / length_j

    Source: Li et al. 2024, arXiv 2403.03218; open-unlearning, src/trainer/unlearn/rmu.py (which trains by default, as the
    authors do, only `mlp.down_proj.weight` of layers 5 to 7).
    """

    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0
    retain_loss_type: Literal["EMBED_DIFF", "NLL", "KL"] = "EMBED_DIFF"
    convention: ConventionName = "d2unlearn"
    module_regex: str | None = None
    trainable_params_regex: list[str] | None = None
    steering_coeff: float = 2.0
    control_direction: list[float] | None = None
    control_seed: Annotated[int, NOT_NEGATIVE] = 0

    def __post_init__(self) -> None:
        check_parameters(self)
        given = self.control_direction
        if given is not None and not 0 < math.hypot(*given) < math.inf:
            raise ConfigError(["control_direction should be finite numbers that are not all zero"])

    def for_model(self, model: nn.Module) -> RMU:
        """With the layer's exact name and its parameters' patterns. Raises `ConfigError` for patterns that fit nothing here."""
        causal = causal_model(model)
        width = int(causal.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
        if self.control_direction is not None and len(self.control_direction) != width:
            raise ConfigError([f"control_direction has {len(self.control_direction)} numbers, the hidden states {width}"])
        layers = _layer_names(causal)
        module = layers[round(DEPTH * len(layers))] if self.module_regex is None else _named(causal, self.module_regex)
        trained = self.trainable_params_regex or _up_to(module, layers)
        if not any(re.fullmatch(pattern, name) for pattern in trained for name, _ in causal.named_parameters()):
            raise ConfigError([f"trainable_params_regex fits no parameter of {type(causal).__name__}: {', '.join(trained)}"])
        return replace(self, module_regex=module, trainable_params_regex=trained)

    def trains(self, parameter: str) -> bool:
        return any(re.fullmatch(pattern, parameter) for pattern in self.trainable_params_regex or ())

    @property
    def forget_needs(self) -> Mapping[Role, Needs]:
        return {"forget": Needs(policy=(self._state,), positions=answer_positions(self.convention))}

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        states = forget.policy[self._state]
        direction = None if self.control_direction is None else tuple(self.control_direction)
        target = self.steering_coeff * _unit_vector(direction, self.control_seed, states.shape[1])
        return self._distance(forget, states, target)

    @property
    def retain_needs(self) -> Needs:
        if self.retain_loss_type != "EMBED_DIFF":
            return retain_needs(self.retain_loss_type, self.convention)
        return Needs(policy=(self._state,), reference=(self._state,), positions=answer_positions(self.convention))

    def retain_loss(self, retain: Observed) -> Tensor:
        if self.retain_loss_type != "EMBED_DIFF":
            return retain_loss(self.retain_loss_type, retain)
        return self._distance(retain, retain.policy[self._state], retain.reference[self._state])

    def _distance(self, seen: Observed, states: Tensor, target: Tensor) -> Tensor:
        """D. states: [N, H]; target: [N, H] or [H]. Returns this batch's share, a scalar."""
        states = at_least_float32(states)
        squares = ((states - target.to(states)) ** 2).mean(dim=1)
        if self.convention != "open-unlearning":
            return seen.mean_rows(seen.mean_by_row(squares))
        lengths = seen.lengths[seen.lengths > 0]
        return squares.sum() * (1 / lengths).sum() / (max(len(lengths), 1) * max(seen.total_rows, 1.0))

    @property
    def _state(self) -> HiddenState:
        return HiddenState(self.module_regex or "")


@lru_cache(maxsize=8)
def _unit_vector(direction: tuple[float, ...] | None, seed: int, width: int) -> Tensor:
    """[H], float32, on the CPU."""
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed)) if direction is None else torch.tensor(direction)
    return nn.functional.normalize(drawn, dim=0)


def _layer_names(causal: nn.Module) -> list[str]:
    """The decoder's layers, in order."""
    try:
        return layer_names(causal)
    except ModelError as error:
        raise ConfigError([f"{error}: name one with module_regex"]) from None


def _named(causal: nn.Module, pattern: str) -> str:
    """The one submodule whose name fits the pattern."""
    names: list[str] = [name for name, _ in causal.named_modules() if name and re.fullmatch(pattern, name)]
    if len(names) != 1:
        fit = "no submodule" if not names else f"{len(names)} submodules ({', '.join(names[:3])}, ...)"
        raise ConfigError([f"module_regex {pattern} fits {fit} of {type(causal).__name__}; it should fit one"])
    return names[0]


def _up_to(module: str, layers: Sequence[str]) -> list[str]:
    """Patterns of all parameters of the layer that the module is (in), and of the two before it."""
    at = next((index for index, layer in enumerate(layers) if f"{module}.".startswith(f"{layer}.")), None)
    if at is None:
        raise ConfigError([f"{module} is in no decoder layer: say with trainable_params_regex what is to be trained"])
    return [rf"{re.escape(layer)}\..*" for layer in layers[max(0, at + 1 - LAYERS_TRAINED) : at + 1]]
