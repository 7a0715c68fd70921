"""Two ways to count: ours, which is right where the two differ, and open-unlearning's, quirks included. All differences.

Every switch of `Convention` is one difference; `DIFFERENCES` says of each what open-unlearning does (commit d3d7cf9 and its
fork 67cc8f5), what we do, and what that does to the number. `docs/evaluation.md` shows this table and measures it.
"""

from __future__ import annotations

from dataclasses import dataclass

from d2unlearn.errors import ConfigError


@dataclass(frozen=True)
class Convention:
    """How the metrics count. The defaults are ours."""

    name: str
    drops_last_token: bool = False
    strength_has_floor: bool = False
    epsilon: float = 0.0
    masks_pad_tokens: bool = False
    truth_from_tokens: bool = False
    cleans_up_spaces: bool = False
    stems_always: bool = True
    empty_is_zero: bool = False
    assumed_reference_auc: float | None = None
    gradients_in_training_mode: bool = False
    typed_special_tokens: bool = False
    rows_in_file_order: bool = False


OURS = Convention("d2unlearn", stems_always=False)
OPEN_UNLEARNING = Convention(
    "open-unlearning",
    drops_last_token=True,
    strength_has_floor=True,
    epsilon=1e-10,
    masks_pad_tokens=True,
    truth_from_tokens=True,
    cleans_up_spaces=True,
    stems_always=True,
    empty_is_zero=True,
    assumed_reference_auc=0.5,
    gradients_in_training_mode=True,
    typed_special_tokens=True,
    rows_in_file_order=True,
)
SEMEVAL = Convention(
    "semeval-2025-task-4",
    stems_always=True,
    cleans_up_spaces=True,
    empty_is_zero=True,
    typed_special_tokens=True,
)
"""The one convention of LUME. Source: `evaluate_generations.py`, which the task gave out with its data."""
CONVENTIONS = {convention.name: convention for convention in (OURS, OPEN_UNLEARNING)}


def convention_named(name: str) -> Convention:
    """Raises `ConfigError` for a name that is none."""
    if name not in CONVENTIONS:
        raise ConfigError([f"convention {name!r} is not known; choose one of {', '.join(CONVENTIONS)}"])
    return CONVENTIONS[name]


@dataclass(frozen=True)
class ConventionDifference:
    """One way in which the two conventions differ. `switch` is the field of `Convention` that turns it on."""

    switch: str
    touches: str
    theirs: str
    ours: str
    effect: str


DIFFERENCES = (
    ConventionDifference(
        "drops_last_token",
        "extraction strength, exact memorization, Min-K%, Min-K%++, gradient norm",
        "leave the answer's last token out: the end token in a chat, a word in plain text",
        "count every token of the answer",
        "an end token is easier or harder than words: single answers move by up to 1/n, and Min-K% looks at other tokens",
    ),
    ConventionDifference(
        "strength_has_floor",
        "extraction strength",
        "an answer of which nothing is right scores 1/n, as if its last token were",
        "it scores 0",
        "too high for forgotten sets, most for short answers; a model that knows nothing does not reach 0",
    ),
    ConventionDifference(
        "epsilon",
        "truth ratio, probability among options, privleak",
        "1e-10 is added to denominators",
        "ratios are taken of logarithms, exactly",
        "where both answers are less likely than 1e-10 (destroyed models) the truth ratio falls to 0 whatever the ratio is",
    ),
    ConventionDifference(
        "masks_pad_tokens",
        "everything that runs the model",
        "the attention mask is `ids != pad id`: where the pad token is an end token, those inside the prompt are hidden",
        "the mask comes from lengths",
        "none where the pad token stands in no prompt; else all likelihoods shift (Llama 3, Qwen chats)",
    ),
    ConventionDifference(
        "truth_from_tokens",
        "ROUGE, zlib",
        "the true answer is the decoded conversation with the decoded question cut out, wherever it occurs",
        "it is the answer in the file",
        "differs for answers that repeat the question, and for tokenizers that do not give back what they were given",
    ),
    ConventionDifference(
        "cleans_up_spaces",
        "ROUGE",
        "decoded texts lose spaces before punctuation and contractions",
        "decoded as it is",
        "words are split elsewhere in texts with spaced punctuation, for truth and answer alike",
    ),
    ConventionDifference(
        "stems_always",
        "ROUGE of MUSE",
        "words are stemmed",
        "not stemmed, as MUSE's authors do (TOFU's ROUGE is stemmed in both)",
        "a little higher with stemming: inflected forms match",
    ),
    ConventionDifference(
        "empty_is_zero",
        "all metrics of an answer with nothing to score",
        "counts 0 in extraction strength, Min-K% and ROUGE",
        "is left out, and counted as not scored",
        "means too low where answers are empty",
    ),
    ConventionDifference(
        "assumed_reference_auc",
        "privleak without a retain model's logs",
        "the retain model's AUC is taken to be 0.5",
        "not scored",
        "far off where the retain model's AUC is not 0.5, as where held-out text was trained on",
    ),
    ConventionDifference(
        "gradients_in_training_mode",
        "gradient norm",
        "taken in training mode, so with dropout",
        "taken in evaluation mode",
        "random for models with dropout, none without",
    ),
    ConventionDifference(
        "typed_special_tokens",
        "everything that runs the model",
        "a conversation is tokenised as one text: the spelling of a special token becomes that token, and what a chat template "
        "writes after the answer's end token counts as answer, with an end token added once more",
        "spellings stay the letters they are, and the answer ends with its end token",
        "none unless a row spells one; likelihoods too high for templates that end with a line break (Qwen): sure tokens are "
        "averaged in",
    ),
    ConventionDifference(
        "rows_in_file_order",
        "membership attacks",
        "batches of rows in the file's order, padded on the right",
        "a question's answers as a tree, longest first",
        "the last bits differ, so that ranks of nearly equal scores can swap",
    ),
)
"""Also shared, and worth knowing: several wrong answers count with the geometric mean of their probabilities in the truth
ratio, though TOFU's paper writes the arithmetic mean; Min-K%++ takes variances below 1e-6 for 1e-6; the KS test treats an
author's twenty questions as independent.
"""
