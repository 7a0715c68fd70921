"""The gate in beam search: every hypothesis is judged by the energies of its own tokens.

The search itself is left as it is without a gate. A gate that took refused hypotheses out of it would make the search look
for the wording that slips through. So what comes back is what the model would have answered, with the refusal in the place of
every hypothesis whose own score exceeds the threshold; and a request whose hypotheses are all refused is not searched further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from d2unlearn.gate.criteria import ReadEnergies, ended_rows
from d2unlearn.gate.online import Decision, OnlineGate, Trace, decide
from d2unlearn.gate.score import Bools, Score
from d2unlearn.stats import Floats

Hypothesis = tuple[int, tuple[int, ...]]
"""The request's number in the batch, and the tokens chosen so far."""


@dataclass(eq=False)
class BeamCriterion(StoppingCriteria):
    """Feeds the gate with each hypothesis' energies, and stops the requests whose hypotheses are all refused.

    `note_fed` has to be among the generation's logits processors. Rows of one look are not those of the next: which hypothesis
    a row goes on with is told by its tokens. The arguments are those of `GateCriterion`.
    """

    read: ReadEnergies
    score: Score | None
    threshold: float
    ends: frozenset[int]
    num_beams: int
    criteria: StoppingCriteriaList | None = None
    others: Floats | None = None
    leads: Floats | None = None
    prompt_length: int = field(default=0, init=False)
    _gate: OnlineGate | None = field(default=None, init=False)
    _fed: Tensor | None = field(default=None, init=False)
    _row_of: dict[Hypothesis, int] = field(default_factory=dict, init=False)
    _may_answer: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_), init=False)

    def note_fed(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """A logits processor that changes nothing: notes which sequences the rows of the latest logits belong to.

        input_ids: [B * beams, T], as they were fed. `scores` are log-probabilities here: no energy can be read from them.
        """
        self._fed = input_ids
        return scores

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """input_ids: [B * K, T + 1], the best continuations of each request. Returns bool [B * K]: those that are finished."""
        gate = self._advanced(input_ids)
        stopped = None if self.criteria is None else self.criteria(input_ids, scores, **options)
        self._note_endings(gate, input_ids, ended_rows(input_ids[:, -1], self.ends, stopped))
        refused = gate.refused.reshape(-1, self.num_beams).all(axis=1) & ~self._may_answer
        done = torch.from_numpy(refused.repeat(len(input_ids) // len(refused))).to(input_ids.device)
        return done if stopped is None else done | stopped

    def finish(self, sequences: Tensor, output: Any) -> tuple[list[Decision], list[Trace]]:
        """One decision and trace a sequence that came back. `output.beam_indices`: [R, L], each token's row, then -1.

        A place that no hypothesis was found for comes back empty, and is judged by the prompt.
        """
        assert self._gate is not None
        paths = [[int(row) for row in path if row >= 0] for path in output.beam_indices.tolist()]
        per_request = len(paths) // len(self._may_answer)
        decisions, traces = [], []
        for sequence, (path, tokens) in enumerate(zip(paths, sequences[:, self.prompt_length :].tolist(), strict=True)):
            rows = path or [sequence // per_request * self.num_beams]
            energies = [float(self._gate.energies[step][row]) for step, row in enumerate(rows)]
            request = sequence // per_request
            other = -math.inf if self.others is None else float(self.others[request])
            lead = 0.0 if self.leads is None else float(self.leads[request])
            decisions.append(decide(self.score, self.threshold, energies, other, lead))
            traces.append(Trace(tuple(energies[: len(path)]), tuple(tokens[: len(path)])))
        return decisions, traces

    def _advanced(self, continuations: Tensor) -> OnlineGate:
        """The gate, told the latest energies of the rows that were just fed, [B * beams]."""
        (energies,) = self.read(continuations)
        assert self._fed is not None
        if self._gate is None:
            self.prompt_length = self._fed.shape[1]
            self._may_answer = np.zeros(len(energies) // self.num_beams, dtype=np.bool_)
            self._gate = OnlineGate(self.score, self.threshold, len(energies), self.others, self.leads)
        fed = self._hypotheses(self._fed, self.num_beams)
        if self._row_of:
            self._gate.reorder(np.array([self._row_of[request, tokens[:-1]] for request, tokens in fed]))
        self._row_of = {hypothesis: row for row, hypothesis in enumerate(fed)}
        self._gate.update(energies)
        return self._gate

    def _note_endings(self, gate: OnlineGate, continuations: Tensor, ended: Bools | None) -> None:
        """A request of which a hypothesis has ended and is not refused may be answered with it."""
        if ended is None:
            return
        refused = gate.refused_if_ended()
        per_request = len(continuations) // len(self._may_answer)
        for (request, tokens), at_end in zip(self._hypotheses(continuations, per_request), ended, strict=True):
            if at_end and not refused[self._row_of[request, tokens[:-1]]]:
                self._may_answer[request] = True

    def _hypotheses(self, sequences: Tensor, per_request: int) -> list[Hypothesis]:
        answers = sequences[:, self.prompt_length :].tolist()
        return [(row // per_request, tuple(tokens)) for row, tokens in enumerate(answers)]
