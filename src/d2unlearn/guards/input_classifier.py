"""Input classifier: refuse what a logistic regression on the prompt's last hidden state takes for a request to be refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from d2unlearn.errors import ConfigError
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.guards.base import Guard, GuardInputs, GuardThreshold, ModelBehindGuard, RefusesPrompts
from d2unlearn.guards.prompt_states import PromptStates, prompt_states
from d2unlearn.refusals import GATE_REFUSALS, refusal_index
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example, Message
from d2unlearn.stats import Floats, conformal_rank


@dataclass(frozen=True)
class LinearScore:
    """score(h) = weights . (h - mean) / scale + bias: log odds that a request is for what is to be forgotten. Vectors: [H]."""

    mean: Floats
    scale: Floats
    weights: Floats
    bias: float

    def __call__(self, hidden: Floats) -> Floats:
        """hidden: [N, H]. Returns [N]."""
        scores: Floats = ((hidden - self.mean) / self.scale) @ self.weights + self.bias
        return scores


@dataclass(frozen=True)
class InputClassifier(Guard):
    """score = log odds of a logistic regression on the last layer's hidden state at the last prompt position.

    It is fitted with scikit-learn on standardised states of the forget and the retained prompts, both kinds weighing the same.
    The threshold is the order statistic of the calibration prompts' scores that split conformal prediction asks for, as the
    energy gate's is: at most `max_false_refusal` of requests like them are refused.

    Parameters (defaults: C 1)
        C   inverse strength of the L2 penalty

    Source: the linear head of Thaker et al. 2024, arXiv 2403.03329.
    """

    C: float = 1.0

    def __post_init__(self) -> None:
        check_penalty(self.C)

    def fit(self, base: GuardedModel, known: GuardInputs) -> ModelBehindGuard:
        return Refusing(base, classify(base, known, self.C), known.seed)


@dataclass(frozen=True)
class Classifier:
    """A fitted score with its threshold."""

    score: LinearScore
    threshold: float
    max_false_refusal: float

    def rule(self, name: str, **parameters: object) -> GuardThreshold:
        """What an evaluation reports of a guard that goes by this classifier."""
        made_of = {key: np.asarray(value).tolist() for key, value in asdict(self.score).items()}
        return GuardThreshold(
            name, self.threshold, self.max_false_refusal, fingerprint([name, made_of, self.threshold, parameters])
        )


def classify(base: GuardedModel, known: GuardInputs, penalty: float) -> Classifier:
    """Fit the score on forget and retained prompts, and set its threshold by the calibration prompts.

    Raises `GateError` when those are too few for the rate asked for.
    """
    rank = conformal_rank(len(known.calibration), known.max_false_refusal)
    hidden = [_states(base, rows).hidden for rows in (known.forget, known.retain, known.calibration)]
    score = linear_score(hidden[1], hidden[0], penalty)
    return Classifier(score, float(np.sort(score(hidden[2]))[rank - 1]), known.max_false_refusal)


def linear_score(retain: Floats, forget: Floats, penalty: float) -> LinearScore:
    """The logistic regression of forget (1) against retain (0) states, each [N, H].

    A component that never varies counts for nothing.
    """
    from sklearn.linear_model import LogisticRegression

    states = np.concatenate([retain, forget])
    mean, spread = states.mean(axis=0), states.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    kinds = np.repeat([0, 1], [len(retain), len(forget)])
    fitted = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000).fit((states - mean) / scale, kinds)
    return LinearScore(mean, scale, fitted.coef_[0], float(fitted.intercept_[0]))


class Refusing(RefusesPrompts):
    """Refuses what the classifier flags, before a token is generated; answers the rest as ever."""

    def __init__(self, base: GuardedModel, classifier: Classifier, seed: int) -> None:
        super().__init__(base, classifier.rule("input_classifier"))
        self.classifier = classifier
        self.seed = seed

    def refusals(self, conversations: Sequence[tuple[Message, ...]]) -> list[str]:
        ids = [self.template.prompt_ids(conversation) for conversation in conversations]
        scores = self.classifier.score(prompt_states(self.model, ids).hidden)
        return [
            refusal_text(prompt, self.seed) if score > self.gate.threshold else ""
            for prompt, score in zip(ids, scores, strict=True)
        ]

    def _guarded(self, prompts: Sequence[tuple[Message, ...]], max_new_tokens: int | None, batch_size: int) -> list[Answer]:
        ids = [self.template.prompt_ids(prompt) for prompt in prompts]
        states = prompt_states(self.model, ids, batch_size=batch_size)
        scores, threshold = self.classifier.score(states.hidden), self.gate.threshold
        passed = [i for i in range(len(prompts)) if not scores[i] > threshold]
        given = self.base.answer([prompts[i] for i in passed], max_new_tokens=max_new_tokens, batch_size=batch_size, raw=True)
        answers = [
            Answer(refusal_text(prompt, self.seed), True, float(energy), float(score), threshold, 0)
            for prompt, energy, score in zip(ids, states.energies, scores, strict=True)
        ]
        for index, answer in zip(passed, given, strict=True):
            answers[index] = Answer(answer.text, False, answer.energy, float(scores[index]), threshold, answer.n_tokens)
        return answers


def refusal_text(prompt_ids: Sequence[int], seed: int) -> str:
    """The refusal to a prompt, the same one for the same prompt."""
    return GATE_REFUSALS[refusal_index(seed, prompt_ids, len(GATE_REFUSALS))]


def check_penalty(penalty: float) -> None:
    """Raises `ConfigError` unless it is a positive number."""
    if not 0 < penalty < float("inf"):
        raise ConfigError([f"C must be positive, not {penalty}"])


def _states(base: GuardedModel, rows: Sequence[Example]) -> PromptStates:
    return prompt_states(base.model, [base.template.prompt_ids(row.prompt) for row in rows])
