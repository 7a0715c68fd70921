"""A stream that comes late enough to leak nothing of what is refused early, and as late as one likes beyond that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from d2unlearn.gate.online import OnlineGate


class HeldBackStream:
    """Hands a single row's tokens on to a streamer of transformers once the looks at them have passed (`OnlineGate.showable`).

    When the row is refused, what is still kept is dropped and the refusal's tokens follow. `refusal`: those, told whether
    tokens were handed on before (a late refusal starts on a new line). It listens to the gate, see `criteria.Listener`.
    """

    def __init__(self, streamer: Any, prompt: Tensor, refusal: Callable[[bool], list[int]], hold_back: int) -> None:
        self._streamer = streamer
        self._refusal = refusal
        self._hold_back = hold_back
        self._n_shown = 0
        streamer.put(prompt.cpu())

    def __call__(self, answers: Tensor, gate: OnlineGate) -> None:
        if not gate.refused[0]:
            over = int(gate.lengths[0])
            self._show(answers[0, : over if over >= 0 else gate.showable(self._hold_back)])

    def end(self, refused: bool) -> None:
        """The answer is over, and what was let pass of it is shown."""
        for token in self._refusal(self._n_shown > 0) if refused else ():
            self._streamer.put(torch.tensor([token]))
        self._streamer.end()

    def _show(self, tokens: Tensor) -> None:
        for position in range(self._n_shown, len(tokens)):
            self._streamer.put(tokens[position : position + 1].cpu())
        self._n_shown = max(self._n_shown, len(tokens))
