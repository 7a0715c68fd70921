"""A stream that comes late enough to leak nothing of what is refused early, and as late as one likes beyond that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from d2unlearn.generation.criteria import Watch


class HeldBackStreamer(BaseStreamer):
    """Hands a single row's tokens on to another streamer once the looks at them have passed.

    The first `first` tokens come together, when as many were chosen; from then on each token is handed on when `hold_back` more
    have passed. When the row is refused, what is still kept is dropped and the refusal's tokens follow. So of an answer that is
    refused at its token n nothing was shown when n <= `first`, else at most the n - 1 - `hold_back` tokens before. `refusal`
    takes the prompt's ids and whether tokens were handed on before (a late refusal starts on a new line).
    """

    def __init__(
        self, inner: Any, watch: Watch, first: int, refusal: Callable[[list[int], bool], list[int]], *, hold_back: int = 0
    ) -> None:
        self._inner = inner
        self._watch = watch
        self._first = first
        self._refusal = refusal
        self._hold_back = hold_back
        self._prompt: Tensor | None = None
        self._kept: list[Tensor] = []
        self._n_tokens = 0

    def put(self, value: Tensor) -> None:
        """The prompt first, then tokens as they are chosen: in assisted decoding before `Watch` has looked at them."""
        if self._prompt is None:
            self._prompt = value
            self._inner.put(value)
            return
        tokens = value.reshape(-1)
        self._kept += [tokens[place : place + 1] for place in range(len(tokens))]
        self._n_tokens += len(tokens)
        passed = min(self._n_tokens, self._watch.n_judged)
        if passed >= self._first and not self._watch.refused.any():
            self._release(until=passed - self._hold_back)

    def end(self) -> None:
        """The answer is over: the last look, then what is kept or the refusal."""
        self._watch.finish(self._n_tokens)
        if self._watch.refused.any() and self._prompt is not None:
            late = len(self._kept) < self._n_tokens
            for token in self._refusal(self._prompt.reshape(-1).tolist(), late):
                self._inner.put(torch.tensor([token]))
        else:
            self._release(until=self._n_tokens)
        self._inner.end()

    def _release(self, until: int) -> None:
        """Hand on the tokens before the one at `until`."""
        shown = self._n_tokens - len(self._kept)
        for value in self._kept[: max(until - shown, 0)]:
            self._inner.put(value)
        del self._kept[: max(until - shown, 0)]
