"""`generate` under watch: the model's own generation, with refused rows replaced. Needs no tokenizer.

A refused row costs the forward passes until it was decided (one, when the prompt's energy alone decides) and comes back as
prompt, refusal, end token and padding; the refusal may be longer than `max_new_tokens`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.gate.rule import Rule, Words
from d2unlearn.generation.beams import BeamWatch
from d2unlearn.generation.criteria import AssistedWatch, Watch
from d2unlearn.generation.decoding import BEAM_MODES, effective_config, id_list, watched_way
from d2unlearn.generation.streams import HeldBackStreamer
from d2unlearn.models import generate_of
from d2unlearn.refusals import refusal_index


class GateWarning(UserWarning):
    """The gate works, but what it promises was stated for other circumstances."""


class Guard:
    """A model, and the words that it refuses with. `tokenizer` is needed for stop strings alone.

    The rule is held against the model by its probe prompts before it is first used, unless that was done (`verified`).
    """

    def __init__(
        self, model: PreTrainedModel, words: Words, tokenizer: PreTrainedTokenizerBase | None = None, *, verified: bool = False
    ) -> None:
        self.model = model
        self.words = words
        self.tokenizer = tokenizer
        self.verified = verified
        self._warned = False

    def generate(
        self, rule: Rule | None, input_ids: Tensor | None, mask: Tensor | None, options: dict[str, Any], *, hold_back: int = 0
    ) -> tuple[Any, Watch | BeamWatch]:
        """Generate under watch; return generate's output with refused rows replaced, and the watch.

        `options` are generate's and are changed. `rule` None: refuses nothing and notes the prompt's energies; one token at a
        time. `hold_back`: see `HeldBackStreamer`. Raises `GateError` for a way of decoding that cannot be watched, and for
        other weights than those that were calibrated.
        """
        config = effective_config(self.model, options)
        mode = GenerationMode.GREEDY_SEARCH
        if rule is not None:
            mode = watched_way(config, options, input_ids)
            self._check(rule, mode, config)
        pad = int(self.words.pad if config.pad_token_id is None else config.pad_token_id)
        ends = id_list(config.eos_token_id) or list(self.words.ends)
        self._set(options, pad_token_id=pad, disable_compile=True)  # a hook inside a compiled graph would not be called
        with EnergyRecorder(
            self.model,
            temperature=1.0 if rule is None else rule.temperature,
            vocab_rows=None if rule is None else rule.vocab_rows,
            every_position=mode == GenerationMode.ASSISTED_GENERATION,
        ) as recorder:
            watch = self._watch(rule, mode, config, recorder, ends, input_ids, options)
            if rule is not None and options.get("streamer") is not None:
                assert isinstance(watch, Watch)
                options["streamer"] = HeldBackStreamer(
                    options["streamer"],
                    watch,
                    rule.score.held_back,
                    lambda ids, late: self._refusal(rule, ids, ends, late),
                    hold_back=hold_back,
                )
            output = generate_of(self.model)(input_ids=input_ids, attention_mask=mask, **options)
        sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
        if isinstance(watch, BeamWatch):
            watch.finish(output.beam_indices)
        else:
            watch.finish(sequences.shape[1] - watch.prompt_length)
        if rule is not None and watch.refused.any():
            sequences = self._with_refusals(sequences, mask, watch, rule, ends, pad)
        if isinstance(output, Tensor) or not config.return_dict_in_generate:
            return sequences, watch
        output.sequences = sequences
        return output, watch

    def _check(self, rule: Rule, mode: GenerationMode, config: GenerationConfig) -> None:
        """Hold the rule against the model once; warn once of answers that are not those it was calibrated on."""
        if not self.verified:
            rule.check_probes(self.model)
            self.verified = True
        if (config.do_sample or mode in BEAM_MODES) and not self._warned:
            self._warned = True
            way = "sampling" if config.do_sample else "beam search"
            warnings.warn(
                f"{way} with a gate that was calibrated on greedy answers: requests are still refused above its threshold, "
                f"but that at most {rule.max_false_refusal:.2%} of legitimate ones are is stated for greedy decoding",
                GateWarning,
                stacklevel=5,
            )

    def _watch(
        self,
        rule: Rule | None,
        mode: GenerationMode,
        config: GenerationConfig,
        recorder: EnergyRecorder,
        ends: Sequence[int],
        input_ids: Tensor | None,
        options: dict[str, Any],
    ) -> Watch | BeamWatch:
        """The watch for this way of decoding, put into the options."""
        criteria = self._own_criteria(config, options)
        forwards = 1 if rule is not None and config.prefill_chunk_size is None else None
        watch: Watch | BeamWatch
        if mode in BEAM_MODES and rule is not None:
            watch = BeamWatch(rule, recorder, ends, config.num_beams, criteria=criteria, forwards=forwards)
            options["logits_processor"] = LogitsProcessorList([*(options.get("logits_processor") or []), watch.beams])
            self._set(options, return_dict_in_generate=True)
        elif mode == GenerationMode.ASSISTED_GENERATION:
            assert input_ids is not None
            watch = AssistedWatch(rule, recorder, ends, criteria=criteria, prompt_length=input_ids.shape[1])
        else:
            watch = Watch(rule, recorder, ends, criteria=criteria, forwards=forwards)
        options["stopping_criteria"] = StoppingCriteriaList([watch])
        return watch

    def _own_criteria(self, config: GenerationConfig, options: dict[str, Any]) -> StoppingCriteriaList | None:
        """The caller's stopping criteria, and one for stop strings: the watch has to know which rows they end."""
        criteria = StoppingCriteriaList(options.pop("stopping_criteria", None) or [])
        if config.stop_strings:
            options.setdefault("tokenizer", self.tokenizer)
            criteria.append(StopStringCriteria(stop_strings=config.stop_strings, tokenizer=options["tokenizer"]))
        return criteria or None

    def _with_refusals(
        self, sequences: Tensor, mask: Tensor | None, watch: Watch | BeamWatch, rule: Rule, ends: Sequence[int], pad: int
    ) -> Tensor:
        """[B, T] sequences with each refused row's answer replaced by its refusal, padded on the right."""
        prompts = sequences[:, : watch.prompt_length]
        kept = None
        if mask is not None and mask.shape[-1] == watch.prompt_length:
            kept = mask.bool().repeat_interleave(len(sequences) // len(mask), dim=0)
        answers: list[list[int]] = []
        for row, refused in enumerate(watch.refused):
            if refused:
                prompt = prompts[row] if kept is None else prompts[row][kept[row].to(prompts.device)]
                answers.append(self._refusal(rule, prompt.tolist(), ends, late=False))
            else:
                answers.append(sequences[row, watch.prompt_length :][: int(watch.lengths[row])].tolist())
        width = max(len(answer) for answer in answers)
        filled = [answer + [pad] * (width - len(answer)) for answer in answers]
        return torch.cat([prompts, torch.tensor(filled, dtype=prompts.dtype, device=prompts.device)], dim=1)

    def _refusal(self, rule: Rule, prompt_ids: list[int], ends: Sequence[int], late: bool) -> list[int]:
        chosen = self.words.refusals[refusal_index(rule.seed, prompt_ids, len(self.words.refusals))]
        return [*(self.words.line_break if late else ()), *chosen, *ends[:1]]

    @staticmethod
    def _set(options: dict[str, Any], **values: Any) -> None:
        """Into the call's generation_config where it has one, for generate takes no other options beside it."""
        if "generation_config" in options:
            options["generation_config"] = copy.deepcopy(options["generation_config"])
            for name, value in values.items():
                setattr(options["generation_config"], name, value)
        else:
            options.update(values)
