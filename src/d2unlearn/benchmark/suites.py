"""What each benchmark asks and reports: one literal table of sets and one of metrics a suite. A new metric is one entry.

The keys are open-unlearning's, so that its files and ours can be read side by side; a metric may use those above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from d2unlearn.benchmark.metrics import (
    ForgetQuality,
    Membership,
    Metric,
    OfTrueAnswer,
    OptionProbability,
    PrivLeak,
    Probability,
    RougeScore,
    TruthRatio,
    Utility,
)
from d2unlearn.schema import Kind


@dataclass(frozen=True)
class SetSpec:
    """One set of a suite. `split`: where its rows are, with the run's own words in braces.

    `others`: columns of further answers to the same question. `limit`: tokens of the longest generated answer, 0 for none
    generated; `stops`: texts at which an answer is cut. `rephrased`: the run's question column is asked. `shots`: the split of
    the examples that stand before every question. `style` text: a continuation of plain text, with no chat around it. `part`:
    read only when asked for by that name.
    """

    kind: Kind
    split: str
    others: tuple[str, ...] = ()
    limit: int = 0
    stops: tuple[str, ...] = ()
    rephrased: bool = False
    shots: str = ""
    style: Literal["chat", "text"] = "chat"
    part: str = ""


@dataclass(frozen=True)
class Suite:
    """A benchmark. `name` begins its files' names; `summary`: the keys of its summary; `own`: keys that open-unlearning lacks.

    `stems`: whether ROUGE stems words in our convention. `kept`: the key that says whether the model is of use still.
    """

    name: str
    sets: Mapping[str, SetSpec]
    measures: Mapping[str, Metric]
    summary: tuple[str, ...]
    stems: bool
    kept: str
    own: tuple[str, ...] = ()


# What to say of a number, in one line.
KNOWN = "probability of the true answer, by its tokens' geometric mean: near 0 for what was never learnt"
PARAPHRASED = "probability of the right answer in other words"
WRONG = "probability of wrong answers of the same form"
OPTIONS = "the true answer's share against wrong ones: chance is one in as many as there are"
TOLD = "how much of the true answer, word by word, the model's own answer tells"
FORGOT = "whether right and wrong answers are equally likely: 1 as for a model that never knew"
TRUE = "how much likelier the right answer is than wrong ones: 1 knows, 0 does not"
EXTRACTED = "share of the answer that follows by itself once its beginning is given"
MEMORISED = "share of the answer's tokens that are the most likely one; common words alone give 0.2 to 0.3"
ATTACK = "how well an attack tells forgotten from held-out texts: right is the retain model's number, not 0"
LEAK = "distance of Min-K% from the retain model's, in percent: 0 is right, below it is known, above it is conspicuous"
SAME = "p-value that the truth ratios are those of the retain model: below 0.05 they differ"
USE = "harmonic mean of nine: probability, ROUGE and truth ratio on the three sets to keep"

PERTURBED = ("paraphrased_answer", "perturbed_answer")

TOFU = Suite(
    name="TOFU",
    sets={
        "forget": SetSpec("forget", "{forget}_perturbed", PERTURBED, limit=200, rephrased=True),
        "retain": SetSpec("retain", "retain_perturbed", PERTURBED, limit=200, rephrased=True),
        "real_authors": SetSpec("retain", "real_authors_perturbed", ("perturbed_answer",), limit=200),
        "world_facts": SetSpec("retain", "world_facts_perturbed", ("perturbed_answer",), limit=200),
        "holdout": SetSpec("retain", "{holdout}"),
    },
    measures={
        "forget_Q_A_Prob": Probability("forget", better="lower", meaning=KNOWN),
        "forget_Q_A_PARA_Prob": Probability("forget", "paraphrased_answer", better="lower", meaning=PARAPHRASED),
        "forget_Q_A_PERT_Prob": Probability("forget", "perturbed_answer", better="neither", meaning=WRONG),
        "forget_Q_A_ROUGE": RougeScore("forget", "rougeL_recall", better="lower", meaning=TOLD),
        "forget_truth_ratio": TruthRatio(
            "forget",
            "forget_Q_A_PARA_Prob",
            "forget_Q_A_PERT_Prob",
            "closer_to_1_better",
            better="higher",
            meaning=FORGOT,
        ),
        "forget_quality": ForgetQuality("forget_truth_ratio", better="higher", meaning=SAME),
        "extraction_strength": OfTrueAnswer(
            "forget", "extraction_strength", zero_if_empty=True, better="lower", meaning=EXTRACTED
        ),
        "exact_memorization": OfTrueAnswer("forget", "exact_memorization", better="lower", meaning=MEMORISED),
        "retain_extraction_strength": OfTrueAnswer(
            "retain", "extraction_strength", zero_if_empty=True, better="higher", meaning=EXTRACTED
        ),
        "retain_Q_A_Prob": Probability("retain", better="higher", meaning=KNOWN),
        "retain_Q_A_PARA_Prob": Probability("retain", "paraphrased_answer", better="higher", meaning=PARAPHRASED),
        "retain_Q_A_PERT_Prob": Probability("retain", "perturbed_answer", better="neither", meaning=WRONG),
        "retain_Q_A_ROUGE": RougeScore("retain", "rougeL_recall", better="higher", meaning=TOLD),
        "retain_Truth_Ratio": TruthRatio(
            "retain", "retain_Q_A_PARA_Prob", "retain_Q_A_PERT_Prob", "true_better", better="higher", meaning=TRUE
        ),
        "ra_Q_A_Prob": Probability("real_authors", better="higher", meaning=KNOWN),
        "ra_Q_A_PERT_Prob": Probability("real_authors", "perturbed_answer", better="neither", meaning=WRONG),
        "ra_Q_A_Prob_normalised": OptionProbability(
            "real_authors", "ra_Q_A_Prob", "ra_Q_A_PERT_Prob", better="higher", meaning=OPTIONS
        ),
        "ra_Q_A_ROUGE": RougeScore("real_authors", "rougeL_recall", better="higher", meaning=TOLD),
        "ra_Truth_Ratio": TruthRatio(
            "real_authors", "ra_Q_A_Prob", "ra_Q_A_PERT_Prob", "true_better", better="higher", meaning=TRUE
        ),
        "wf_Q_A_Prob": Probability("world_facts", better="higher", meaning=KNOWN),
        "wf_Q_A_PERT_Prob": Probability("world_facts", "perturbed_answer", better="neither", meaning=WRONG),
        "wf_Q_A_Prob_normalised": OptionProbability(
            "world_facts", "wf_Q_A_Prob", "wf_Q_A_PERT_Prob", better="higher", meaning=OPTIONS
        ),
        "wf_Q_A_ROUGE": RougeScore("world_facts", "rougeL_recall", better="higher", meaning=TOLD),
        "wf_Truth_Ratio": TruthRatio(
            "world_facts", "wf_Q_A_Prob", "wf_Q_A_PERT_Prob", "true_better", better="higher", meaning=TRUE
        ),
        "model_utility": Utility(
            (
                "retain_Q_A_Prob",
                "retain_Q_A_ROUGE",
                "retain_Truth_Ratio",
                "ra_Q_A_Prob_normalised",
                "ra_Q_A_ROUGE",
                "ra_Truth_Ratio",
                "wf_Q_A_Prob_normalised",
                "wf_Q_A_ROUGE",
                "wf_Truth_Ratio",
            ),
            better="higher",
            meaning=USE,
        ),
        "mia_loss": Membership("loss", "forget", "holdout", better="neither", meaning=ATTACK),
        "mia_zlib": Membership("zlib", "forget", "holdout", better="neither", meaning=ATTACK),
        "mia_reference": Membership("reference", "forget", "holdout", better="neither", meaning=ATTACK),
        "mia_min_k": Membership("min_k", "forget", "holdout", better="neither", meaning=ATTACK),
        "mia_min_k_plus_plus": Membership("min_k_plus_plus", "forget", "holdout", better="neither", meaning=ATTACK),
        "mia_gradnorm": Membership("gradnorm", "forget", "holdout", better="neither", meaning=ATTACK),
        "privleak": PrivLeak("mia_min_k", better="neither", meaning=LEAK),
    },
    summary=(
        "exact_memorization",
        "extraction_strength",
        "forget_Q_A_Prob",
        "forget_Q_A_ROUGE",
        "forget_quality",
        "forget_truth_ratio",
        "mia_gradnorm",
        "mia_loss",
        "mia_min_k",
        "mia_min_k_plus_plus",
        "mia_reference",
        "mia_zlib",
        "model_utility",
        "privleak",
        "retain_extraction_strength",
    ),
    stems=True,
    kept="model_utility",
)

STOPS = ("\n\n", "\nQuestion", "Question:")

MUSE = Suite(
    name="MUSE",
    sets={
        "forget_knowmem": SetSpec("forget", "knowmem/forget_qa", limit=32, stops=STOPS, shots="knowmem/forget_qa_icl"),
        "retain_knowmem": SetSpec("retain", "knowmem/retain_qa", limit=32, stops=STOPS, shots="knowmem/retain_qa_icl"),
        "forget_verbmem": SetSpec("forget", "verbmem/forget", limit=128, style="text"),
        "forget_text": SetSpec("forget", "privleak/forget", style="text"),
        "holdout_text": SetSpec("retain", "privleak/holdout", style="text"),
        "scal_1": SetSpec("forget", "scal/forget_1", style="text", part="scal"),
        "scal_2": SetSpec("forget", "scal/forget_2", style="text", part="scal"),
        "scal_3": SetSpec("forget", "scal/forget_3", style="text", part="scal"),
        "scal_4": SetSpec("forget", "scal/forget_4", style="text", part="scal"),
        "sust_1": SetSpec("forget", "sust/forget_1", style="text", part="sust"),
        "sust_2": SetSpec("forget", "sust/forget_2", style="text", part="sust"),
        "sust_3": SetSpec("forget", "sust/forget_3", style="text", part="sust"),
        "sust_4": SetSpec("forget", "sust/forget_4", style="text", part="sust"),
    },
    measures={
        "forget_knowmem_ROUGE": RougeScore("forget_knowmem", "rougeL_f1", better="lower", meaning=TOLD),
        "retain_knowmem_ROUGE": RougeScore("retain_knowmem", "rougeL_f1", better="higher", meaning=TOLD),
        "forget_verbmem_ROUGE": RougeScore("forget_verbmem", "rougeL_f1", better="lower", meaning=TOLD),
        "extraction_strength": OfTrueAnswer(
            "forget_verbmem", "extraction_strength", zero_if_empty=True, better="lower", meaning=EXTRACTED
        ),
        "exact_memorization": OfTrueAnswer("forget_verbmem", "exact_memorization", better="lower", meaning=MEMORISED),
        "mia_loss": Membership("loss", "forget_text", "holdout_text", better="neither", meaning=ATTACK),
        "mia_zlib": Membership("zlib", "forget_text", "holdout_text", better="neither", meaning=ATTACK),
        "mia_reference": Membership("reference", "forget_text", "holdout_text", better="neither", meaning=ATTACK),
        "mia_min_k": Membership("min_k", "forget_text", "holdout_text", better="neither", meaning=ATTACK),
        "mia_min_k_plus_plus": Membership("min_k_plus_plus", "forget_text", "holdout_text", better="neither", meaning=ATTACK),
        "mia_gradnorm": Membership("gradnorm", "forget_text", "holdout_text", better="neither", meaning=ATTACK),
        "privleak": PrivLeak("mia_min_k", better="neither", meaning=LEAK),
        "scal_1_Prob": Probability("scal_1", better="lower", meaning=KNOWN),
        "scal_2_Prob": Probability("scal_2", better="lower", meaning=KNOWN),
        "scal_3_Prob": Probability("scal_3", better="lower", meaning=KNOWN),
        "scal_4_Prob": Probability("scal_4", better="lower", meaning=KNOWN),
        "sust_1_Prob": Probability("sust_1", better="lower", meaning=KNOWN),
        "sust_2_Prob": Probability("sust_2", better="lower", meaning=KNOWN),
        "sust_3_Prob": Probability("sust_3", better="lower", meaning=KNOWN),
        "sust_4_Prob": Probability("sust_4", better="lower", meaning=KNOWN),
    },
    summary=(
        "exact_memorization",
        "extraction_strength",
        "forget_knowmem_ROUGE",
        "forget_verbmem_ROUGE",
        "mia_gradnorm",
        "mia_loss",
        "mia_min_k",
        "mia_min_k_plus_plus",
        "mia_reference",
        "mia_zlib",
        "privleak",
        "retain_knowmem_ROUGE",
    ),
    stems=False,
    kept="retain_knowmem_ROUGE",
    own=tuple(f"{part}_{fold}_Prob" for part in ("scal", "sust") for fold in (1, 2, 3, 4)),
)

SUITES = {"tofu": TOFU, "muse": MUSE}

WMDP = ("wmdp_bio", "wmdp_cyber", "wmdp_chem")
"""Tasks of lm-eval, which scores them by likelihood: of three sets of questions with four options."""


def chosen(suite: Suite, *, parts: Sequence[str] = (), left_out: Sequence[str] = ()) -> Suite:
    """The suite with the parts asked for and without some of its attacks."""
    sets = {name: spec for name, spec in suite.sets.items() if not spec.part or spec.part in parts}
    measures = {key: each for key, each in suite.measures.items() if key not in left_out and set(sets_of(each)) <= set(sets)}
    return replace(suite, sets=sets, measures=measures)


def sets_of(measure: Metric) -> tuple[str, ...]:
    """The sets that a metric reads itself; none for one that reads other metrics alone."""
    match measure:
        case Membership():
            return measure.forget, measure.holdout
        case Probability() | OptionProbability() | TruthRatio() | RougeScore() | OfTrueAnswer():
            return (measure.on,)
        case _:
            return ()


def attacked_sets(suite: Suite) -> set[str]:
    """The sets that membership attacks read."""
    return {name for measure in suite.measures.values() if isinstance(measure, Membership) for name in sets_of(measure)}
