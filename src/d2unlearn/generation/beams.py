"""The gate in beam search: every hypothesis is judged by the energies of its own tokens.

The search itself is left as it is without a gate. A gate that took refused hypotheses out of it would make the search look
for the wording that slips through. So what comes back is what the model would have answered, with the refusal in the place of
every hypothesis whose own score exceeds the threshold; and a request whose hypotheses are all refused is not searched further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.gate.score import Bools, Floats, RunningScore, running_scores
from d2unlearn.generation.criteria import Decides, Decision

Hypothesis = tuple[int, tuple[int, ...]]
"""The request's place in the batch, and the tokens chosen so far."""


class RunningBeams(LogitsProcessor):
    """Changes nothing: notes which sequences the rows of the latest logits belong to."""

    def __init__(self) -> None:
        self.sequences: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: [B * beams, T], as they were fed. `scores` are log-probabilities here: no energy can be read from them."""
        self.sequences = input_ids
        return scores


class BeamWatch(StoppingCriteria):
    """Stops the requests whose hypotheses are all refused, and judges those that come back.

    `beams` has to be among the generation's logits processors. Rows of one look are not those of the next: which hypothesis a
    row goes on with is told by its tokens. `forwards`: passes that the prompt takes (None: any number).
    """

    def __init__(
        self,
        gate: Decides,
        recorder: EnergyRecorder,
        ends: Sequence[int],
        num_beams: int,
        *,
        criteria: StoppingCriteriaList | None = None,
        forwards: int | None = 1,
    ) -> None:
        self._gate = gate
        self._recorder = recorder
        self._ends = frozenset(ends)
        self._num_beams = num_beams
        self._criteria = criteria
        self._forwards = forwards
        self._running: RunningScore | None = None
        self._row_of: dict[Hypothesis, int] = {}
        self._history: list[Floats] = []
        self._may_answer: Bools = np.zeros(0, dtype=np.bool_)
        self._decisions: list[Decision] = []
        self.beams = RunningBeams()
        self.prompt_length = 0
        self.refused: Bools = np.zeros(0, dtype=np.bool_)
        self.lengths: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """input_ids: [B * K, T + 1], the best continuations of each request. Returns bool [B * K]: those that are finished."""
        forwards, self._forwards = self._forwards, 1
        running = self._advanced(np.array(self._recorder.take(forwards)[:, -1].tolist()))
        stopped = None if self._criteria is None else self._criteria(input_ids, scores, **options)
        self._note_endings(running, input_ids, stopped)
        refused = (running.best > self._gate.threshold).reshape(-1, self._num_beams).all(axis=1) & ~self._may_answer
        done = torch.from_numpy(refused.repeat(len(input_ids) // len(refused))).to(input_ids.device)
        return done if stopped is None else done | stopped

    def finish(self, beam_indices: Tensor) -> None:
        """Judge the sequences that came back. beam_indices: [R, L], the row that each token was chosen from, then -1.

        A place that no hypothesis was found for comes back empty, and is judged by the prompt.
        """
        paths = [[int(row) for row in path if row >= 0] for path in beam_indices.tolist()]
        per_request = len(paths) // len(self._may_answer)
        for place, path in enumerate(paths):
            rows = path or [place // per_request * self._num_beams]
            self._decisions.append(self._decision([float(self._history[step][row]) for step, row in enumerate(rows)]))
        self.refused = np.array([decision.refused for decision in self._decisions])
        self.lengths = np.array([len(path) for path in paths])

    def decisions(self) -> list[Decision]:
        """One for each sequence that came back, in order."""
        return self._decisions

    def _advanced(self, energies: Floats) -> RunningScore:
        """The running scores of the rows that were just fed, [B * beams], with their latest energies."""
        assert self.beams.sequences is not None
        if self._running is None:
            self.prompt_length = self.beams.sequences.shape[1]
            self._may_answer = np.zeros(len(energies) // self._num_beams, dtype=np.bool_)
            self._running = RunningScore(self._gate.score, len(energies))
        fed = self._hypotheses(self.beams.sequences, self._num_beams)
        if self._history:
            self._running.reorder(np.array([self._row_of[request, tokens[:-1]] for request, tokens in fed]))
        self._row_of = {hypothesis: row for row, hypothesis in enumerate(fed)}
        self._history.append(energies)
        self._running.update(energies)
        return self._running

    def _note_endings(self, running: RunningScore, continuations: Tensor, stopped: Tensor | None) -> None:
        """A request of which a hypothesis has ended and is not refused may be answered with it."""
        ended = [token in self._ends for token in continuations[:, -1].tolist()]
        if stopped is not None:
            ended = [one or other for one, other in zip(ended, stopped.tolist(), strict=True)]
        if not any(ended):
            return
        passes = running.if_ended() <= self._gate.threshold
        per_request = len(continuations) // len(self._may_answer)
        for (request, tokens), at_end in zip(self._hypotheses(continuations, per_request), ended, strict=True):
            if at_end and passes[self._row_of[request, tokens[:-1]]]:
                self._may_answer[request] = True

    def _hypotheses(self, sequences: Tensor, per_request: int) -> list[Hypothesis]:
        answers = sequences[:, self.prompt_length :].tolist()
        return [(place // per_request, tuple(tokens)) for place, tokens in enumerate(answers)]

    def _decision(self, energies: list[float]) -> Decision:
        scores = running_scores(self._gate.score, energies)
        above = next((place for place, score in enumerate(scores) if score > self._gate.threshold), None)
        last = len(scores) - 1 if above is None else above
        n_tokens = len(scores) if above is None else above
        return Decision(above is not None, energies[0], scores[last], self._gate.threshold, n_tokens)
