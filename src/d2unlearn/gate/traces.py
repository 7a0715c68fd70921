"""The energies of an answer as it is generated: what the gate sees, read from the model's own logits and nothing else.

Position 0 is the last prompt position, whose logits predict the answer's first token; position t predicts token t. How they
are read: see `recorder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.data.batching import by_room, pad_left
from d2unlearn.errors import ModelError, border
from d2unlearn.gate.gated import GatedGenerator
from d2unlearn.gate.online import Trace
from d2unlearn.gate.rule import RefusalTokens
from d2unlearn.models import ONE_ANSWER, context_length, end_token_ids, pad_token_id
from d2unlearn.runtime import progress


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
    length share a batch, padded on the left; the padding changes no energy beyond rounding. Answers end at the context's end.
    """
    pad, ends = pad_token_id(tokenizer), end_token_ids(model, tokenizer)
    generator = GatedGenerator(model, RefusalTokens((), (), tuple(ends), pad))
    options: dict[str, Any] = {**ONE_ANSWER, "do_sample": do_sample}
    options |= {"pad_token_id": pad, "eos_token_id": ends or None}
    traces: dict[int, Trace] = {}
    lengths = [len(prompt) for prompt in prompts]
    batches = list(by_room(lengths, batch_size, max_new_tokens, context_length(model)))
    for indices, room in progress(batches, description, total=len(batches)):
        ids, mask = (t.to(model.device) for t in pad_left([prompts[i] for i in indices], pad))
        asked = {**options, "max_new_tokens": room}
        with border(ModelError, f"{type(model).__name__} could not generate"):
            made = generator.generate(None, ids, mask, asked, temperature=temperature, vocab_rows=vocab_rows)
        traces |= dict(zip(indices, made.traces, strict=True))
    return [traces[i] for i in range(len(prompts))]
