"""What a model answers to the rows of a calibration, in every wording that they are asked in, and the threshold from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.compatibility import check_room
from d2unlearn.data.holdout import split_validation
from d2unlearn.data.identity import folded
from d2unlearn.data.template import Template
from d2unlearn.errors import GateError
from d2unlearn.gate.asked import AskedRequest, answered_requests, unanswered_families
from d2unlearn.gate.calibrate import Calibration, calibrate, choosing_questions
from d2unlearn.gate.choice import COMBINATIONS, choose
from d2unlearn.gate.gated import TURN_TOKENS, looked_tokens
from d2unlearn.gate.online import Trace
from d2unlearn.gate.renderings import Rendering, fitting, renderings
from d2unlearn.gate.score import Score
from d2unlearn.gate.traces import collect_traces
from d2unlearn.gate.turns import under_system
from d2unlearn.metrics.text import leaked, rouge_l_recall
from d2unlearn.models import context_length
from d2unlearn.refusals import GATE_REFUSALS
from d2unlearn.schema import Example
from d2unlearn.stats import conformal_rank
from d2unlearn.wordings.wording import Material, Wording

_NEAR, _UNRELATED = "near", "unrelated"
"""Groups of requests that a file of their own stands for."""


class CalibrationRows(NamedTuple):
    """Rows with a question each. `near`, `unrelated`: legitimate as `retain`, from near what is forgotten, from far off."""

    retain: Sequence[Example]
    forget: Sequence[Example] = ()
    near: Sequence[Example] = ()
    unrelated: Sequence[Example] = ()


def checked_rows(rows: CalibrationRows) -> CalibrationRows:
    """The rows. Raises `GateError` for one without a prompt, and for legitimate ones that are forget rows, too."""
    for kind, each in zip(("retain", "forget", "near", "unrelated"), rows, strict=True):
        bare = next((row for row in each if not row.prompt), None)
        if bare is not None:
            raise GateError(
                f"{bare.source}: a {kind} row of plain text has no prompt, and the gate judges requests by the energy where an "
                "answer begins; give rows with a question (prompt/completion, question/answer or messages)"
            )
    asked = {folded(row.question): row for row in rows.forget}
    for kind, each in (("near", rows.near), ("unrelated", rows.unrelated)):
        both = next((row for row in each if folded(row.question) in asked), None)
        if both is not None:
            raise GateError(
                f"{both.source} asks what {asked[folded(both.question)].source} says is to be forgotten: take it out of "
                f"--{kind} or out of --forget"
            )
    return rows


@dataclass(frozen=True)
class GateReading:
    """How the model answers: greedily, so many tokens; energies of that temperature over `vocab_rows` (None: all).

    `system`: the message that a deployment puts before everything.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    batch_size: int
    temperature: float
    vocab_rows: int | None
    system: str | None = None

    def asked(self, made: Sequence[Rendering], kind: str, score: Score | None = None) -> list[AskedRequest]:
        """What was read of the answers, and of each turn and sentence by itself.

        score: of the turns, and of answers that nothing is held against, no more than it looks at; None: all.
        """
        template, length = Template(self.tokenizer), context_length(self.model)
        kept = fitting(made, template, None if length is None else length - self.max_new_tokens)
        told = any(each.target.strip() for each, _ in kept)
        tokens = None if score is None or told else score.positions
        whole = self._traces([ids for _, ids in kept], kind, self.max_new_tokens if tokens is None else tokens)
        turns = [[tuple(template.prompt_ids(turn)) for turn in each.turns] for each, _ in kept]
        by_itself = self._turn_energies(turns, kind, score)
        return [
            AskedRequest(
                each.question,
                (trace.energies, *(by_itself[turn] for turn in own)),
                each.group,
                each.family,
                self._told(each, trace.token_ids, tokens),
                each.request,
            )
            for (each, _), own, trace in zip(kept, turns, whole, strict=True)
        ]

    def check_room(self, rows: CalibrationRows) -> None:
        """Raises `DataError` for a row whose prompt leaves the model no room to answer."""
        template, length = Template(self.tokenizer), context_length(self.model)
        for row in (row for each in rows for row in each):
            check_room(template.prompt_ids(under_system(row.prompt, self.system)), length, row.source)

    def _turn_energies(
        self, turns: Sequence[Sequence[tuple[int, ...]]], kind: str, score: Score | None
    ) -> dict[tuple[int, ...], tuple[float, ...]]:
        """Of each prompt once: as many positions as a gate of that score looks at (see `GatedGenerator.turn_scores`)."""
        prompts = list(dict.fromkeys(turn for own in turns for turn in own))
        tokens = TURN_TOKENS if score is None else looked_tokens(score)
        traces = self._traces(prompts, f"turns of {kind}", tokens) if prompts else []
        return {prompt: trace.energies for prompt, trace in zip(prompts, traces, strict=True)}

    def _traces(self, prompts: Sequence[Sequence[int]], kind: str, tokens: int) -> list[Trace]:
        return collect_traces(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=min(tokens, self.max_new_tokens),
            batch_size=self.batch_size,
            temperature=self.temperature,
            vocab_rows=self.vocab_rows,
            description=f"answers to {kind} prompts",
        )

    def _told(self, rendering: Rendering, token_ids: Sequence[int], tokens: int | None) -> bool | None:
        if not rendering.target.strip() or tokens is not None:
            return None
        text = str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        return leaked(rouge_l_recall(rendering.target, text)) == 1.0


def measure_rows(
    answering: GateReading,
    rows: CalibrationRows,
    wordings: Sequence[Wording],
    candidates: Mapping[str, Score],
    default: str,
    *,
    max_false_refusal: float,
    confidence: float | None,
    of_each: int = 1,
    seed: int = 0,
) -> Calibration:
    """The score, the threshold, and everything that was measured on the way.

    A seeded 35% of the legitimate rows, and a third of the forget rows, choose the score; the others set the threshold. Of
    legitimate rows in other wordings those count that the model answers; of forgotten ones those in families of wordings in
    which it answers the legitimate ones.
    Raises `GateError` for too few rows, before anything is generated, and for energies that are not finite.
    """
    parts = [split_validation(each, seed=seed) if each else ([], []) for each in (rows.retain, rows.near, rows.unrelated)]
    conformal_rank(len(parts[0][1]), max_false_refusal, confidence)
    answering.check_room(rows)
    system = answering.system
    material = Material([row for row in parts[0][0] if row.answer], [row for row in rows.forget if row.answer])

    def legitimate(side: int) -> list[Rendering]:
        made = renderings(parts[0][side], wordings, material, of_each=of_each, system=system, seed=seed)
        for group, part in zip((_NEAR, _UNRELATED), parts[1:], strict=True):
            made += renderings(
                part[side], first=1 + max([each.question for each in made], default=0), group=group, system=system
            )
        return made

    labels = [row.group for row in rows.forget]
    choosing = choosing_questions(len(rows.forget), labels, seed)
    forgotten = renderings(rows.forget, wordings, material, of_each=of_each, refusal=GATE_REFUSALS[0], system=system, seed=seed)
    validation = answering.asked(legitimate(0), "validation")
    left_out = unanswered_families(validation)
    validation = answered_requests(validation)
    forget = answering.asked([each for each in forgotten if each.family not in left_out], "forget")
    shown = [each for each in forget if each.question in choosing]
    combinations = COMBINATIONS if len(candidates) > 1 else None
    choice = choose(validation, shown, candidates, default, max_false_refusal, combinations=combinations, seed=seed)
    calibration = answered_requests(answering.asked(legitimate(1), "calibration", choice.score))
    found = calibrate(
        choice,
        validation,
        calibration,
        forget,
        labels,
        choosing=choosing if len(candidates) > 1 else frozenset(),
        max_false_refusal=max_false_refusal,
        confidence=confidence,
        seed=seed,
    )
    return replace(found, left_out=dict(left_out))
