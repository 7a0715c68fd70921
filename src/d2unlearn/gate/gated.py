"""Generation behind a gate: the one function that every way of answering goes through. Needs no tokenizer.

It says which way of decoding is asked for, and whether the gate can watch it; holds the rule against the weights; reads the
energies that the tokens are chosen from; lets the gate decide; and puts refusals in the place of refused rows. A refused row
costs the forward passes until it was decided (one, when the prompt's energy alone decides) and comes back as prompt, refusal,
end token and padding; the refusal may be longer than `max_new_tokens`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from d2unlearn.data.batching import by_tokens, pad_left
from d2unlearn.gate.beams import BeamCriterion
from d2unlearn.gate.criteria import AcceptedDrafts, GateCriterion, LastPosition, Listener, ReadEnergies
from d2unlearn.gate.decoding import BEAM_MODES, effective_config, id_list, n_sequences, watched_way
from d2unlearn.gate.online import Decision, Trace
from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.gate.rule import GateRule, RefusalTokens
from d2unlearn.gate.score import Score, request_scores
from d2unlearn.gate.streams import HeldBackStream
from d2unlearn.gate.weights import WeightsCheck
from d2unlearn.models import generate_of
from d2unlearn.refusals import refusal_index
from d2unlearn.stats import Floats

Turns = Sequence[Sequence[Sequence[int]]]
"""For each request, prompts of token ids that it is judged by beside its own."""


TURN_TOKENS = 8
"""Tokens of an answer to each turn by itself that are looked at, where the score's early looks need no more. On the
quickstart's world the first six show every forgotten question, the first two 96 % of them.
"""


def looked_tokens(score: Score) -> int:
    """Tokens of an answer to each turn by itself: `TURN_TOKENS` or what the early looks need, of no more than it looks at."""
    tokens = max(score.lookahead, TURN_TOKENS)
    return tokens if score.positions is None else min(tokens, score.positions)


class GateWarning(UserWarning):
    """The gate works, but what it promises was stated for other circumstances."""


@dataclass(frozen=True)
class Generation:
    """What came of one call of `generate`. `output`: its own, with refused rows replaced.

    `decisions`, `traces`: one a sequence, in order. A trace is of what the model generated, until it was refused if it was.
    """

    output: Any
    decisions: list[Decision]
    traces: list[Trace]


class GatedGenerator:
    """A model, and the tokens that it refuses with. `tokenizer` is needed for stop strings alone."""

    def __init__(self, model: PreTrainedModel, tokens: RefusalTokens, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._model = model
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.weights = WeightsCheck(model)
        self._warned = False

    @property
    def model(self) -> PreTrainedModel:
        """The one that is held against the rule, and generates."""
        return self._model

    def generate(
        self,
        rule: GateRule | None,
        input_ids: Tensor | None,
        mask: Tensor | None,
        options: dict[str, Any],
        *,
        hold_back: int = 0,
        listener: Listener | None = None,
        any_way: bool = False,
        temperature: float = 1.0,
        vocab_rows: int | None = None,
        warn: bool = True,
        turns: Turns = (),
        refusals: Sequence[Sequence[int]] = (),
        leads: Sequence[float] = (),
    ) -> Generation:
        """`model.generate(input_ids, attention_mask, **options)` behind the gate. `options` are changed.

        `rule` None: nothing is refused, and energies of `temperature` and `vocab_rows` are noted; with `any_way` also where
        decoding goes a way that no gate can watch, as raw answers may. `hold_back`: see `HeldBackStream`. `warn`: of answers
        that are not greedy. `turns`: what else the requests are judged by, see `turn_scores`. `refusals`: the tokens that
        each is refused with, where they are not the gate's own. `leads`: what is added to each request's score, for its group
        (`EnergyGate.lead_of`); none where nobody knows the groups. Raises `GateError` for a way of
        decoding that cannot be watched, and for other weights than those that were calibrated.
        """
        config, any_way = effective_config(self.model, options), any_way and rule is None
        mode = GenerationMode.GREEDY_SEARCH if any_way else watched_way(config, options, input_ids)
        pad = int(self.tokens.pad if config.pad_token_id is None else config.pad_token_id)
        ends = id_list(config.eos_token_id) or list(self.tokens.ends)
        stream = others = None
        if rule is not None:
            temperature, vocab_rows = rule.temperature, rule.vocab_rows
            self.weights.check(rule, n_sequences(config, options, input_ids))
            if warn:
                self._warn(rule, mode, config)
            if options.get("streamer") is not None:
                prompt = torch.zeros(1, 0, dtype=torch.long) if input_ids is None else input_ids
                refusal = partial(self._refusal, rule, _without_padding(prompt, mask)[0], ends, refusals[:1])
                listener = stream = HeldBackStream(options.pop("streamer"), prompt, refusal, hold_back)
            if any(turns):
                assert mask is not None
                others = self.turn_scores(rule, turns, mask.numel())
        _set(options, pad_token_id=pad, disable_compile=True)  # a hook inside a compiled graph would not be called
        with EnergyRecorder(
            self.model,
            temperature=temperature,
            vocab_rows=vocab_rows,
            every_position=mode == GenerationMode.ASSISTED_GENERATION,
        ) as recorder:
            passes = None if any_way else 1
            read: ReadEnergies = LastPosition(recorder, passes if config.prefill_chunk_size is None else None, passes)
            if mode == GenerationMode.ASSISTED_GENERATION:
                assert input_ids is not None
                read = AcceptedDrafts(recorder, input_ids.shape[1])
            criterion = self._criterion(rule, mode, config, read, frozenset(ends), options, listener, others, leads)
            output = generate_of(self.model)(input_ids=input_ids, attention_mask=mask, **options)
        sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
        decisions, traces = criterion.finish(sequences, output)
        if stream is not None:
            stream.end(decisions[0].refused)
        if rule is not None and any(decision.refused for decision in decisions):
            prompts = sequences[:, : criterion.prompt_length]
            asked = _without_padding(prompts, mask)
            answers = [
                self._refusal(rule, asked[row], ends, refusals[row * len(refusals) // len(asked) :][:1])
                if decision.refused
                else list(traces[row].token_ids)
                for row, decision in enumerate(decisions)
            ]
            sequences = torch.cat([prompts, _filled(answers, pad).to(prompts)], dim=1)
        if isinstance(output, Tensor) or not config.return_dict_in_generate:
            return Generation(sequences, decisions, traces)
        output.sequences = sequences
        return Generation(output, decisions, traces)

    def turn_scores(self, rule: GateRule, turns: Turns, budget: int) -> Floats:
        """[B], the highest score among each request's turns, asked by themselves; -inf where it has none.

        turns: for each request the token ids of prompts. Each is answered greedily for as many tokens as `looked_tokens`
        says, so its score is at most that of its whole answer: what passes by itself passes here. Batches have
        at most `budget` tokens, those of the requests' own prompts, or one turn.
        """
        asked = [(row, prompt) for row, own in enumerate(turns) for prompt in own]
        scores = np.full(len(turns), -math.inf)
        for places in by_tokens([len(prompt) for _, prompt in asked], budget):
            ids, mask = (t.to(self.model.device) for t in pad_left([asked[place][1] for place in places], self.tokens.pad))
            options = {
                "max_new_tokens": looked_tokens(rule.score),
                "do_sample": False,
                "num_beams": 1,
                "num_return_sequences": 1,
            }
            made = self.generate(None, ids, mask, options, temperature=rule.temperature, vocab_rows=rule.vocab_rows)
            found = request_scores(rule.score, [trace.energies for trace in made.traces])
            np.maximum.at(scores, [asked[place][0] for place in places], found)
        return scores

    def _warn(self, rule: GateRule, mode: GenerationMode, config: GenerationConfig) -> None:
        """Warn once of answers that are not those that the gate was calibrated on."""
        if (config.do_sample or mode in BEAM_MODES) and not self._warned:
            self._warned = True
            way = "sampling" if config.do_sample else "beam search"
            warnings.warn(
                f"{way} with a gate that was calibrated on greedy answers: requests are still refused above its threshold, "
                f"but that at most {rule.max_false_refusal:.2%} of legitimate ones are is stated for greedy decoding",
                GateWarning,
                stacklevel=4,
            )

    def _criterion(
        self,
        rule: GateRule | None,
        mode: GenerationMode,
        config: GenerationConfig,
        read: ReadEnergies,
        ends: frozenset[int],
        options: dict[str, Any],
        listener: Listener | None,
        others: Floats | None,
        leads: Sequence[float],
    ) -> GateCriterion | BeamCriterion:
        """The gate's criterion for this way of decoding, put into the options in the place of the caller's own."""
        score, threshold = (None, math.inf) if rule is None else (rule.score, rule.threshold)
        criteria = StoppingCriteriaList(options.pop("stopping_criteria", None) or [])
        if config.stop_strings:  # the gate has to know which rows they end
            options.setdefault("tokenizer", self.tokenizer)
            criteria.append(StopStringCriteria(stop_strings=config.stop_strings, tokenizer=options["tokenizer"]))
        criterion: GateCriterion | BeamCriterion
        led = np.array(leads) if rule is not None and len(leads) else None
        if mode in BEAM_MODES:
            criterion = BeamCriterion(read, score, threshold, ends, config.num_beams, criteria or None, others, led)
            options["logits_processor"] = LogitsProcessorList([*(options.get("logits_processor") or []), criterion.note_fed])
            _set(options, return_dict_in_generate=True)
        else:
            criterion = GateCriterion(read, score, threshold, ends, criteria or None, listener, others, led)
        options["stopping_criteria"] = StoppingCriteriaList([criterion])
        return criterion

    def _refusal(
        self, rule: GateRule, prompt_ids: list[int], ends: Sequence[int], own: Sequence[Sequence[int]], late: bool = False
    ) -> list[int]:
        """A refusal's tokens: `own` where there is one, else the gate's for this prompt."""
        texts = own or self.tokens.refusals
        chosen = texts[refusal_index(rule.seed, prompt_ids, len(texts))]
        return [*(self.tokens.line_break if late else ()), *chosen, *ends[:1]]


def _without_padding(prompts: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The ids of each prompt, of [R, T]. A mask [B, T] holds for R / B rows each; one of another length is that of a cache."""
    if mask is None or mask.shape[-1] != prompts.shape[1]:
        return list(prompts.tolist())
    kept = mask.bool().repeat_interleave(len(prompts) // len(mask), dim=0).to(prompts.device)
    return [row[own].tolist() for row, own in zip(prompts, kept, strict=True)]


def _filled(answers: list[list[int]], pad: int) -> Tensor:
    width = max(len(answer) for answer in answers)
    return torch.tensor([answer + [pad] * (width - len(answer)) for answer in answers])


def _set(options: dict[str, Any], **values: Any) -> None:
    """Into the call's generation_config where it has one, for generate takes no other options beside it."""
    if "generation_config" in options:
        options["generation_config"] = copy.deepcopy(options["generation_config"])
        for name, value in values.items():
            setattr(options["generation_config"], name, value)
    else:
        options.update(values)
