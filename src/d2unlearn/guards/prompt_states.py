"""What a model makes of a request before it answers: the hidden state that its first token is predicted from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from d2unlearn.data.batching import by_length, pad_tokens
from d2unlearn.observation import observe
from d2unlearn.quantities import HiddenState, LogSumExp
from d2unlearn.runtime import progress
from d2unlearn.schema import Tokens
from d2unlearn.stats import Floats


class PromptStates(NamedTuple):
    """Of N requests: hidden states as the LM head reads them [N, H], and the free energies there [N] (nats)."""

    hidden: Floats
    energies: Floats


@torch.no_grad()
def prompt_states(model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, batch_size: int = 32) -> PromptStates:
    """The last position of each prompt (token ids), in order: one forward pass a prompt, nothing generated."""
    rows = [Tokens(str(i), (*prompt, 0), (False,) * len(prompt) + (True,)) for i, prompt in enumerate(prompts)]
    state, energy = HiddenState(), LogSumExp()
    hidden, energies = np.zeros((len(rows), 0)), np.zeros(len(rows))
    batches = list(by_length([len(prompt) for prompt in prompts], batch_size))
    for indices in progress(batches, "requests", total=len(batches)):
        batch = pad_tokens([rows[i] for i in indices], pad_id=0).to(model.device)
        observed = observe(model, {"forget": batch}, {"forget": (state, energy)})["forget"]
        seen = observed[state].double().cpu().numpy()
        if not hidden.shape[1]:
            hidden = np.zeros((len(rows), seen.shape[1]))
        hidden[indices], energies[indices] = seen, -observed[energy].double().cpu().numpy()
    return PromptStates(hidden, energies)
