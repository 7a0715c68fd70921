"""The gate inside vLLM: `vllm serve ARTIFACT --logits-processors d2unlearn.generation.vllm_plugin:EnergyGateLogitsProcessor`.

One class for both of vLLM's model runners. They load processors from one list and each accepts only its own kind, so this is
both. Rule and threshold come from the model's own configuration, never from a request. What it sees is what the gate's
statistic is made of: the logits of the last prompt position, then those of each generated token.

vLLM changes logits before it shows them (biases, bans, grammars, penalties), and log-probabilities tell what a refusal hides,
so requests that ask for such are turned down.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor as FirstRunnerProcessor  # type: ignore[import-not-found]
from vllm.v1.sample.logits_processor.builtin import process_dict_updates  # type: ignore[import-not-found]
from vllm.v1.worker.gpu.sample.logits_processor import (  # type: ignore[import-not-found]
    LogitsProcessor as SecondRunnerProcessor,
)

from d2unlearn.energy import free_energy
from d2unlearn.errors import GateError
from d2unlearn.gate.copied import check_copy
from d2unlearn.gate.rule import GateRule, RefusalTokens, rule_from_json
from d2unlearn.generation.stepwise import Session, Sessions, TokenConstraint
from d2unlearn.loaded_files import BOUND, bound_hashes, check_self_contained
from d2unlearn.models import weights_hash
from d2unlearn.runtime import say
from d2unlearn.schema import GATE_COPY

CHANGES_LOGITS = {
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "structured_outputs": None,
    "min_tokens": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "thinking_token_budget": None,
    "trace_decode_token_ids": None,
}
"""What a request may ask for that changes the logits before or after the gate, and its value where nobody asks."""

TELLS_LOGITS = ("logprobs", "prompt_logprobs", "logprob_token_ids")
"""What tells the logits beside the answer. Beam search is made of these."""


@dataclass
class _Request:
    """A request of either runner. `session` None: its first logits are still to come."""

    ends: Sequence[int]
    limit: int | None
    prompt: list[int] | None = None
    answer: list[int] | None = None
    session: Session | None = None


class EnergyGateLogitsProcessor(FirstRunnerProcessor, SecondRunnerProcessor):  # type: ignore[misc]
    """Forces the refusal's tokens once a request's score exceeds the threshold.

    The first runner makes it of (config, device, pinned), the second of (config, request states). Raises `GateError` for a
    model without a gate, of other files, in another dtype, quantised, with adapters, or with speculative decoding; and when a
    probe prompt has another energy than it had. Until all were asked (see `vllm_probes`), every other request is refused.
    """

    def __init__(self, vllm_config: Any, *arguments: Any) -> None:
        self._rule, tokens = carried_rule(vllm_config)
        self._sessions = Sessions(self._rule, tokens)
        say(
            f"the gate's {self._sessions.probes.n_waiting} probe prompts are to be asked; until then all is refused: "
            "python -m d2unlearn.generation.vllm_probes --url ADDRESS --model FOLDER"
        )
        self._requests: dict[int, _Request] = {}
        self._states = arguments[0] if len(arguments) == 1 else None

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises `ValueError`, which the server answers with status 400, for what a guarded model does not do."""
        asked = [n for n, usual in CHANGES_LOGITS.items() if getattr(sampling_params, n, usual) not in (usual, [], {})]
        if asked:
            raise ValueError(
                f"this model is served with a gate that judges its logits, and {', '.join(asked)} changes them; leave it out "
                "(a value from the model's generation_config.json goes with --generation-config vllm)"
            )
        told = [name for name in TELLS_LOGITS if getattr(sampling_params, name, None) is not None]
        if told:
            raise ValueError(
                f"this model is served with a gate, and {', '.join(told)} (or beam search) would tell what it hides"
            )

    def is_argmax_invariant(self) -> bool:
        """First runner: False, or it would run after temperature, and not at all for greedy requests."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """First runner: requests that came, went and moved."""
        process_dict_updates(self._requests, batch_update, self._new_request)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Second runner: a request takes the slot, and nothing of the one before it is left."""
        self._requests[req_idx] = _request(sampling_params)
        return True

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """logits: [rows, V], float32; changed in place. `ctx`: the second runner's layout of the rows."""
        if not len(logits):
            return logits
        energies = free_energy(logits[:, : self._rule.vocab_rows], self._rule.temperature).tolist()
        for row, request, position, last_token in self._first_rows() if ctx is None else self._second_rows(ctx):
            session = request.session
            assert session is not None
            constraint = self._sessions.judge(session, position, last_token, energies[row])
            _impose(constraint, session, position, logits[row])
        return logits

    def _new_request(self, params: Any, prompt: list[int] | None, answer: list[int]) -> _Request:
        if prompt is None:
            raise GateError("the gate chooses its refusal by the prompt's tokens, and prompts of embeddings have none")
        return _request(params, prompt, answer)

    def _first_rows(self) -> list[tuple[int, _Request, int, int | None]]:
        """(row, request, position, latest token) of each row. `answer` is the runner's own list, which grows."""
        rows = []
        for row, request in self._requests.items():
            assert request.prompt is not None
            assert request.answer is not None
            if request.session is None:
                request.session = self._sessions.begin(request.prompt, request.answer, request.ends, request.limit)
            rows.append((row, request, len(request.answer), request.answer[-1] if request.answer else None))
        return rows

    def _second_rows(self, ctx: Any) -> list[tuple[int, _Request, int, int | None]]:
        """The same, without rows of prompts that are not yet fed to their end: no token is chosen from those."""
        assert self._states is not None
        slots = ctx.expanded_idx_mapping
        told = torch.stack(
            [slots, ctx.pos, ctx.input_ids, self._states.prompt_len.gpu[slots], self._states.prefill_len.gpu[slots]]
        )
        rows = []
        for row, (slot, fed, token, prompt_length, fed_length) in enumerate(told.T.tolist()):
            if fed + 1 < fed_length:
                continue
            request, position = self._requests[slot], fed + 1 - prompt_length
            if request.session is None:
                tokens = self._states.all_token_ids.gpu[slot, : fed + 1].tolist()
                request.session = self._sessions.begin(
                    tokens[:prompt_length], tokens[prompt_length:], request.ends, request.limit
                )
            rows.append((row, request, position, token if position else None))
        return rows


def carried_rule(vllm_config: Any) -> tuple[GateRule, RefusalTokens]:
    """The gate in the model's configuration. Raises `GateError` unless it fits what is served."""
    model = vllm_config.model_config
    copy = getattr(model.hf_config, GATE_COPY, None)
    if copy is None:
        raise GateError(f"{model.model} carries no gate ({GATE_COPY} in config.json): make one with `d2unlearn calibrate`")
    rule, tokens = rule_from_json(copy)
    check_copy(copy, str(model.model))
    served = str(model.dtype).removeprefix("torch.")
    if served != rule.dtype:
        raise GateError(
            f"the gate was calibrated in {rule.dtype} and the model is served in {served}: add --dtype {rule.dtype}"
        )
    if model.quantization is not None:
        raise GateError(f"quantisation ({model.quantization}) moves energies: serve the weights that were calibrated")
    if vllm_config.speculative_config is not None:
        raise GateError("the gate cannot watch speculative decoding: tokens of drafts are judged that never come")
    if vllm_config.lora_config is not None:
        raise GateError("adapters are other weights than those that were calibrated: merge the adapter and calibrate")
    if not tokens.ends:
        raise GateError("the model has no token that ends an answer, so a refusal would have no end")
    _check_files(Path(str(model.model)), copy)
    return rule, tokens


def _check_files(folder: Path, copy: Mapping[str, Any]) -> None:
    """Raises `GateError` for a folder with other weights, configurations, tokenizer or template than those calibrated."""
    if not folder.is_dir():
        warnings.warn(f"{folder} is no folder, so nobody checks that its files are those of the gate", stacklevel=2)
        return
    check_self_contained(folder)
    if weights_hash(folder) != copy.get("weights_hash"):
        raise GateError(f"the gate in {folder} was calibrated on other weights; run `d2unlearn calibrate` again")
    there, bound = bound_hashes(folder), copy.get("bound", {})
    changed = [words for name, words in BOUND.items() if there[name] != bound.get(name, there[name])]
    if changed:
        raise GateError(f"{' and '.join(changed)} in {folder} changed since calibration; run `d2unlearn calibrate` again")


def _request(params: Any, prompt: list[int] | None = None, answer: list[int] | None = None) -> _Request:
    return _Request(tuple(params.all_stop_token_ids), params.max_tokens, prompt, answer)


def _impose(constraint: TokenConstraint, session: Session, position: int, row: Tensor) -> None:
    """Let nothing be chosen but the forced token; or let no end be chosen, where the model would not have chosen one."""
    if constraint.no_end:
        if int(row.argmax()) not in session.ends:
            row[list(session.ends)] = -torch.inf
            return
        constraint = session.refuse(position)
    if constraint.forced is not None:
        row.fill_(-torch.inf)
        row[constraint.forced] = 0.0
