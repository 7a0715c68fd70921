"""Ways of decoding: which a gate can watch, and an error for every other. Nothing is run unguarded for want of a way."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from d2unlearn.errors import GateError

BEAM_MODES = (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)
WATCHED_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION, *BEAM_MODES)
PLAIN = (
    "greedy decoding, sampling, beam search and assisted decoding can be guarded; what nothing guards has to be asked for with "
    "raw=True"
)


def effective_config(model: PreTrainedModel, options: Mapping[str, Any]) -> GenerationConfig:
    """What `generate` will go by: the call's options over its generation_config over the model's."""
    given: GenerationConfig | None = options.get("generation_config")
    model_config: GenerationConfig | None = model.generation_config
    config = copy.deepcopy(model_config) if model_config else GenerationConfig()  # type: ignore[no-untyped-call]
    layers = [] if given is None else [{k: v for k, v in given.to_dict().items() if v is not None}]
    for layer in (*layers, options):
        for name, value in layer.items():
            if hasattr(config, name) and not callable(getattr(config, name)):
                setattr(config, name, value)
    return config


def watched_way(config: GenerationConfig, options: Mapping[str, Any], input_ids: Tensor | None) -> GenerationMode:
    """The way of decoding. Raises `GateError` for one that the gate cannot watch."""
    if options.get("custom_generate") is not None:
        raise _unwatched("custom_generate")
    if config.cache_implementation == "paged":
        raise _unwatched("continuous batching (cache_implementation='paged')")
    if config.guidance_scale not in (None, 1):
        raise _unwatched("classifier-free guidance: the answer's tokens come from other logits than the model's own")
    if config.token_healing:
        raise _unwatched("token healing: it generates before the prompt is finished")
    if options.get("adapter_names") is not None or options.get("alora_offsets") is not None:
        raise _unwatched("adapters chosen row by row: they are other weights than those that were calibrated")
    mode = config.get_generation_mode(options.get("assistant_model"))
    if mode not in WATCHED_MODES:
        raise _unwatched(str(mode.value).replace("_", " "))
    if mode == GenerationMode.ASSISTED_GENERATION and (_filled_cache(options) or input_ids is None):
        raise _unwatched("assisted decoding that goes on from a cache or from embeddings")
    several = mode in BEAM_MODES or n_sequences(config, options, input_ids) > 1
    if options.get("streamer") is not None and several:
        raise _unwatched("a stream of several sequences at once: a refusal of one could not be told from the others")
    return mode


def n_sequences(config: GenerationConfig, options: Mapping[str, Any], input_ids: Tensor | None) -> int:
    """How many answers come of a call, whose prompts are ids or embeddings; 1 a row without either."""
    prompts = options.get("inputs_embeds") if input_ids is None else input_ids
    return (1 if prompts is None else len(prompts)) * (config.num_return_sequences or 1)


def _filled_cache(options: Mapping[str, Any]) -> bool:
    return any(options.get(name) is not None for name in ("cache", "past_key_values", "cache_params"))


def _unwatched(way: str) -> GateError:
    return GateError(f"the gate cannot watch {way}, so it is not run unguarded: {PLAIN}")


def id_list(value: Any) -> list[int]:
    """Token ids, however a configuration holds them: one, several, a tensor, or None for none."""
    if value is None:
        return []
    if isinstance(value, Tensor):
        return [int(i) for i in value.reshape(-1).tolist()]
    return [int(i) for i in value] if isinstance(value, Sequence) else [int(value)]
