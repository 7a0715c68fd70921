"""A model with its gate: `generate` as in transformers, answers, decisions and streams, with refused requests refused.

Greedy decoding, sampling, beam search and assisted decoding are guarded; other ways would get past the gate, so they are turned
down unless raw generation is asked for. The gate reads the model's own logits: penalties, biases and temperature change which
tokens are chosen, not their energies.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import TextIteratorStreamer

from d2unlearn.compatibility import check_room
from d2unlearn.data.batching import by_room, pad_left
from d2unlearn.data.template import Template
from d2unlearn.errors import GateError, ModelError, border
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.decoding import effective_config
from d2unlearn.gate.gated import GatedGenerator, GateWarning, Generation, Turns
from d2unlearn.gate.online import Decision
from d2unlearn.gate.rule import GateRule, refusal_tokens
from d2unlearn.gate.turns import turns_by_themselves, under_system
from d2unlearn.models import (
    ONE_ANSWER,
    context_length,
    end_token_ids,
    generate_of,
    load_model,
    load_tokenizer,
    pad_token_id,
    state_hash,
)
from d2unlearn.quantization import is_quantised
from d2unlearn.refusals import RefusalTexts, refusal_index
from d2unlearn.runtime import drawing_from, fingerprint, pick_device, progress
from d2unlearn.schema import GATE_FILE, Message

Prompt = str | tuple[Message, ...]
"""A question, or a conversation that ends with the user's turn, whose turns are each looked at by themselves too."""

RAW_MAX_NEW_TOKENS = 128
_SHOWN = 12
"""Tokens of a prompt by which a person knows it."""

__all__ = ["Answer", "GateWarning", "GuardedModel", "Prompt"]


@dataclass(frozen=True)
class Answer:
    """An answer, or the refusal in its place. `energy`: free energy (nats) at the last prompt position.

    Refused when `score` exceeds `threshold`; both None for a raw answer, which nothing guarded. `n_tokens`: tokens generated.
    """

    text: str
    refused: bool
    energy: float
    score: float | None
    threshold: float | None
    n_tokens: int

    @property
    def raw(self) -> bool:
        """Whether no gate decided on it."""
        return self.threshold is None


class GuardedModel:
    """A causal language model that refuses what its gate says. Without a gate (None) it generates raw, and says so.

    The gate is held against the model before it is first used, by its probe prompts, and again when the weights may have
    changed (see `WeightsCheck`, also for what it does not see); `from_pretrained` holds it against the files before that.
    `system`: the deployment's system message, under which requests without one are answered: the gate's own, unless it is set.
    Raises `GateError` for a tokenizer that renders prompts differently than in calibration.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        gate: EnergyGate | None,
        refusals: RefusalTexts | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.gate = gate
        self.refusals = refusals
        self.system = None if gate is None else gate.system
        self.template = Template(tokenizer, date=None if gate is None else gate.date)
        texts = () if gate is None else gate.refusal_texts
        tokens = refusal_tokens(self.template.text_ids, texts, end_token_ids(model, tokenizer), pad_token_id(tokenizer))
        self.generator = GatedGenerator(model.eval(), tokens, tokenizer)  # type: ignore[no-untyped-call]
        if gate is not None and gate.template != self.template.fingerprint:
            raise GateError(
                "the tokenizer renders prompts differently than when the gate was calibrated (its chat template changed); "
                "recalibrate, or restore the template"
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str = "auto",
        raw: bool = False,
        use_gate: bool = False,
        refusals: RefusalTexts | None = None,
    ) -> GuardedModel:
        """Model, tokenizer and gate of an artifact. `raw` loads it without its gate; with `use_gate` too, with the gate where
        there is one. `refusals`: what is said in the place of the gate's own texts. Raises `GateError` when there is no
        gate, or one of other weights, and raw was not asked for.
        """
        wanted = not raw or (use_gate and (Path(folder) / GATE_FILE).is_file())
        gate = EnergyGate.from_pretrained(folder) if wanted else None
        model = load_model(folder, dtype=dtype)
        if not is_quantised(model):
            model.to(pick_device(device))  # type: ignore[arg-type]
        return cls(model, load_tokenizer(folder), gate, refusals)

    def __repr__(self) -> str:
        guard = "RAW: no gate" if self.gate is None else f"gate {self.gate.score_name} > {self.gate.threshold:.4g}"
        return f"GuardedModel({type(self.model).__name__}, {guard})"

    @property
    def model(self) -> PreTrainedModel:
        """The one that answers."""
        return self.generator.model

    @property
    def rule(self) -> GateRule | None:
        """What its gate decides by."""
        return None if self.gate is None else self.gate.rule

    @property
    def fingerprint(self) -> str:
        """Changes with the weights, their dtype and the gate: what answers depend on beside the prompt."""
        return fingerprint([state_hash(self.model), None if self.gate is None else self.gate.fingerprint])

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        raw: bool = False,
        hold_back: int = 0,
        **options: Any,
    ) -> Any:
        """`model.generate(input_ids, attention_mask, **options)`, guarded. Returns [B, T] sequences, or generate's dict.

        Refused rows of `sequences` hold the prompt, the refusal, the end token and padding; further outputs (`scores`,
        `hidden_states`) are the model's own, unguarded. `num_return_sequences` rows are decided one by one. A `streamer`,
        of one row, gets its tokens late enough that early refusals leak nothing; with `hold_back` only when so many more have
        passed. `raw`: plain generation, whatever the way of decoding. Token ids do not say who said what, so a conversation is
        judged here as a whole alone; `answer`, `stream` and `decide` look at its turns too. Raises `GateError` for a way that
        the gate cannot watch.
        """
        if raw or self.gate is None:
            if effective_config(self.model, options).pad_token_id is None:
                options["pad_token_id"] = pad_token_id(self.tokenizer)
            return generate_of(self.model)(input_ids=input_ids, attention_mask=attention_mask, **options)
        return self.generator.generate(self.gate.rule, input_ids, attention_mask, options, hold_back=hold_back).output

    def generate_batch(self, *arguments: Any, **options: Any) -> Any:
        """Not guarded by any gate, so it raises `GateError`. For raw answers call it on `self.model`."""
        raise GateError(
            "continuous batching chooses tokens where no gate can look: use `generate` or `answer` (or `d2unlearn serve`, "
            "which batches requests as they come)"
        )

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        raw: bool = False,
        beginnings: Sequence[Sequence[int]] | None = None,
    ) -> list[Answer]:
        """Answer each prompt, in order. `max_new_tokens` None: as many as the gate was calibrated with.

        Greedy unless `do_sample`; sampling draws from `seed` and leaves torch's own generator alone. None of `temperature`,
        `top_p`, `top_k` (0: of all tokens): the model's own. The same seed, prompts and batch size give the same answers.
        `raw`: without the gate; energies are still noted. `beginnings`: for each prompt the token ids that its answer begins
        with, which the model continues: answers are what it adds, and the gate sees the positions from there on. Raises
        `DataError` for a prompt that fills the model's context.
        """
        begun = [()] * len(prompts) if beginnings is None else beginnings
        asked = [self.prompt_ids(prompt, start) for prompt, start in zip(prompts, begun, strict=True)]
        options: dict[str, Any] = {"do_sample": do_sample}
        if do_sample:
            drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
            options |= {name: value for name, value in drawn.items() if value is not None}
        answers: dict[int, Answer] = {}
        most, context = max_new_tokens or self._max_new_tokens, context_length(self.model)
        batches = list(by_room([len(ids) for ids in asked], batch_size, most, context))
        with drawing_from(seed, self.model.device):
            for indices, room in progress(batches, "answers", total=len(batches)) if len(batches) > 1 else batches:
                started = [(prompts[i], bool(begun[i])) for i in indices]
                turns = [] if raw else [self.turns_of(prompt, begun=start) for prompt, start in started]
                leads = [self.lead_of(prompt, begun=start) for prompt, start in started]
                prompts_ids, rule = [asked[i] for i in indices], None if raw else self.rule
                made = self._generated(prompts_ids, rule, turns, leads, **options, max_new_tokens=room)
                for index, decision, trace in zip(indices, made.decisions, made.traces, strict=True):
                    refusal = self.refusal(prompts[index], asked[index]) if decision.refused else None
                    answers[index] = self.answer_of(asked[index], decision, trace.token_ids, refusal=refusal)
        return [answers[i] for i in range(len(asked))]

    def answer_of(
        self,
        prompt_ids: Sequence[int],
        decision: Decision,
        token_ids: Sequence[int],
        stop: Sequence[str] = (),
        refusal: str | None = None,
    ) -> Answer:
        """The answer that these tokens make, or its refusal. `stop`: texts that end it and are no part of it. `refusal`: its
        words, where they are not the gate's own.
        """
        text = self.text_of(token_ids)
        end = min((start for start in map(text.find, stop) if start >= 0), default=None)
        told = text[:end].strip()
        if decision.refused and self.gate is not None:
            told = refusal or self.gate.refusal(prompt_ids)
        return Answer(told, **vars(decision))

    def refusal(self, prompt: Prompt, prompt_ids: Sequence[int]) -> str:
        """The words that a prompt would be refused with: always the same ones. Needs a gate."""
        assert self.gate is not None
        if self.refusals is None:
            return self.gate.refusal(prompt_ids)
        turns = [prompt] if isinstance(prompt, str) else [message.content for message in prompt if message.role == "user"]
        texts = self.refusals.choose_from("\n".join(turns))
        return texts[refusal_index(self.gate.seed, prompt_ids, len(texts))]

    @property
    def refusal_texts(self) -> tuple[str, ...]:
        """All words that it may refuse with."""
        if self.gate is None:
            return ()
        return self.gate.refusal_texts if self.refusals is None else self.refusals.every

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def decide(self, prompt: Prompt) -> Decision:
        """The gate's decision on a prompt, from the greedy answer it was calibrated for. Raises `GateError` without a gate."""
        if self.gate is None:
            raise GateError("a raw model decides nothing; calibrate a gate with `d2unlearn calibrate`")
        ids = self.prompt_ids(prompt)
        made = self._generated(
            [ids],
            self.gate.rule,
            [self.turns_of(prompt)],
            [self.lead_of(prompt)],
            max_new_tokens=self._room(ids, self.gate.max_new_tokens),
            do_sample=False,
        )
        return made.decisions[0]

    def stream(
        self, prompt: Prompt, *, max_new_tokens: int | None = None, do_sample: bool = False, hold_back: int = 0
    ) -> Iterator[str]:
        """The answer in pieces, as it is generated.

        The first `gate.score.lookahead` tokens come together, once the early looks have passed: a request refused by those
        yields the refusal alone. One refused later ends with a line break and the refusal; with `hold_back`, tokens come only
        when so many more have passed, and that many fewer are shown of it. Errors of the generation are raised here.
        """
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        asked = self.prompt_ids(prompt)
        ids, mask = self.batch([asked])
        abandoned = threading.Event()
        options: dict[str, Any] = {
            **ONE_ANSWER,
            "max_new_tokens": self._room(asked, max_new_tokens or self._max_new_tokens),
            "do_sample": do_sample,
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([partial(_when_set, abandoned)]),
        }
        with ThreadPoolExecutor(1) as pool:
            told = self.gate is not None and self.refusals is not None
            refusals = [self.template.text_ids(self.refusal(prompt, asked))] if told else []
            work = pool.submit(self._streamed, ids, mask, hold_back, options, prompt, refusals)
            work.add_done_callback(lambda _: streamer.text_queue.put(streamer.stop_signal))  # also where it failed
            try:
                yield from (piece for piece in streamer if piece)
            finally:
                abandoned.set()
            work.result()

    @property
    def _max_new_tokens(self) -> int:
        return RAW_MAX_NEW_TOKENS if self.gate is None else self.gate.max_new_tokens

    def _generated(
        self,
        prompts: Sequence[Sequence[int]],
        rule: GateRule | None,
        turns: Turns,
        leads: Sequence[float],
        **options: Any,
    ) -> Generation:
        """One sequence a prompt; without a rule raw, and energies are noted."""
        ids, mask = self.batch(prompts)
        with border(ModelError, f"{type(self.model).__name__} could not generate"):
            asked = {**ONE_ANSWER, **options}
            return self.generator.generate(rule, ids, mask, asked, any_way=rule is None, turns=turns, leads=leads)

    def _streamed(
        self, ids: Tensor, mask: Tensor, hold_back: int, options: dict[str, Any], prompt: Prompt, refusals: list[list[int]]
    ) -> None:
        if self.rule is None:
            self.generate(ids, mask, raw=True, **options)
        else:
            self.generator.generate(
                self.rule,
                ids,
                mask,
                options,
                hold_back=hold_back,
                turns=[self.turns_of(prompt)],
                refusals=refusals,
                leads=[self.lead_of(prompt)],
            )

    def turns_of(self, prompt: Prompt, *, begun: bool = False) -> list[list[int]]:
        """The prompts that a request is judged by beside its own: see `turns_by_themselves`."""
        if self.gate is None:
            return []
        own = self.conversation(prompt)
        turns = turns_by_themselves(own, self.gate.system, begun=begun, sentences=self.gate.sentences)
        return [self.template.prompt_ids(turn) for turn in turns]

    def lead_of(self, prompt: Prompt, *, begun: bool = False) -> float:
        """What is added to a request's score for its group; 0 without a gate. begun: the answer has a beginning."""
        messages = (*self.conversation(prompt), *([Message("assistant", "")] if begun else []))
        return 0.0 if self.gate is None else self.gate.lead_of(messages)

    def conversation(self, prompt: Prompt) -> tuple[Message, ...]:
        """The messages of a request, under the deployment's system message where it has none of its own."""
        return under_system((Message("user", prompt),) if isinstance(prompt, str) else prompt, self.system)

    def _room(self, prompt_ids: Sequence[int], most: int) -> int:
        """Tokens that an answer may have: `most`, or what the context leaves."""
        context = context_length(self.model)
        return most if context is None else min(most, context - len(prompt_ids))

    def prompt_ids(self, prompt: Prompt, beginning: Sequence[int] = (), *, where: str = "") -> list[int]:
        """A prompt as it is asked, with the beginning of its answer. Raises `DataError`, with the place, for one too long."""
        ids = [*self.template.prompt_ids(self.conversation(prompt)), *beginning]
        check_room(ids, context_length(self.model), where or f"{self.tokenizer.decode(ids[:_SHOWN])!r} ...")
        return ids

    def batch(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(input_ids, attention_mask) of prompts, [B, T] each, padded on the left, where the model is."""
        ids, mask = pad_left(prompts, pad_token_id(self.tokenizer))
        return ids.to(self.model.device), mask.to(self.model.device)


def _when_set(event: threading.Event, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
    """A stopping criterion: stops every row once the event is set."""
    return torch.full((len(input_ids),), event.is_set(), dtype=torch.bool, device=input_ids.device)
