"""The energies of an answer as it is generated: what the gate sees, read from the model's own logits and nothing else.

Position 0 is the last prompt position, whose logits predict the answer's first token; position t predicts token t. How they
are read: see `recorder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from d2unlearn.data.batching import by_length, pad_left, until_end
from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.models import end_token_ids, generate_plainly, pad_token_id
from d2unlearn.runtime import progress

__all__ = ["EnergyRecorder", "Trace", "collect_traces"]


@dataclass(frozen=True)
class Trace:
    """One generated answer. `energies[t]` (nats) is the free energy of the logits that token `token_ids[t]` was chosen from.

    Both have the same length, at least 1; the end token, when there is one, is the last.
    """

    energies: tuple[float, ...]
    token_ids: tuple[int, ...]

    @property
    def prompt_energy(self) -> float:
        """Free energy at the last prompt position."""
        return self.energies[0]


class _EnergyLog(StoppingCriteria):
    """Never stops anything: notes the latest energies each time a token has been chosen."""

    def __init__(self, recorder: EnergyRecorder) -> None:
        self.recorder = recorder
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.steps.append(self.recorder.take()[:, -1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def collect_traces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    temperature: float = 1.0,
    vocab_rows: int | None = None,
    do_sample: bool = False,
    description: str = "energies",
) -> list[Trace]:
    """Generate an answer to each prompt (token ids) and return its trace, in the order given.

    Greedy unless `do_sample` (then with the model's own sampling settings and torch's global generator). Prompts of similar
    length share a batch, padded on the left; the padding changes no energy beyond rounding.
    """
    pad = pad_token_id(tokenizer)
    ends = end_token_ids(model, tokenizer)
    traces: dict[int, Trace] = {}
    batches = list(by_length([len(prompt) for prompt in prompts], batch_size))
    for indices in progress(batches, description, total=len(batches)):
        ids, mask = (t.to(model.device) for t in pad_left([prompts[i] for i in indices], pad))
        with EnergyRecorder(model, temperature=temperature, vocab_rows=vocab_rows) as recorder:
            log = _EnergyLog(recorder)
            sequences = generate_plainly(
                model,
                ids,
                mask,
                max_new_tokens=max_new_tokens,
                pad_id=pad,
                ends=ends,
                do_sample=do_sample,
                stopping_criteria=StoppingCriteriaList([log]),
            )
        energies = torch.stack(log.steps, dim=1).tolist()
        tokens = sequences[:, ids.shape[1] :].tolist()
        traces |= {i: _trace(e, until_end(t, ends)) for i, e, t in zip(indices, energies, tokens, strict=True)}
    return [traces[i] for i in range(len(prompts))]


def _trace(energies: list[float], tokens: list[int]) -> Trace:
    return Trace(tuple(energies[: len(tokens)]), tuple(tokens))
