"""What each benchmark asks and reports: one literal table of sets and one of metrics a suite. A new metric is one entry.

The keys are open-unlearning's, so that its files and ours can be read side by side; a metric may use those above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from d2unlearn.benchmark.choices import ChoiceAccuracy
from d2unlearn.benchmark.conventions import SEMEVAL, Convention
from d2unlearn.benchmark.metrics import (
    MEMBERSHIP_ATTACKS,
    TRUE_ANSWER,
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
from d2unlearn.benchmark.semeval import ExactMatch, FinalScore, MembershipScore, TaskAggregate
from d2unlearn.data.lume import ASKED, CONTINUED, TASKS
from d2unlearn.data.years import WRONG_CHOICES
from d2unlearn.schema import Better, Kind


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

    `stems`: whether ROUGE stems words in our convention. `kept`: the key that says whether the model is of use still, "" for
    none. `convention`: the only way it is counted, where it has one of its own. `compared`: the forget and retained sets whose
    energies are held against each other, each with each unless said.
    """

    name: str
    sets: Mapping[str, SetSpec]
    metrics: Mapping[str, Metric]
    summary: tuple[str, ...]
    stems: bool
    kept: str
    own: tuple[str, ...] = ()
    convention: Convention | None = None
    compared: tuple[tuple[str, str], ...] = ()


PERTURBED = ("paraphrased_answer", "perturbed_answer")
UTILITY = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
"""Probability, ROUGE and truth ratio on the three sets to keep."""
MIA = tuple(f"mia_{attack}" for attack in MEMBERSHIP_ATTACKS)


def _knowledge(short: str, on: str) -> dict[str, Metric]:
    """What is known of a set of general knowledge, whose rows have wrong answers and no paraphrase."""
    return {
        f"{short}_Q_A_Prob": Probability(on, better="higher"),
        f"{short}_Q_A_PERT_Prob": Probability(on, "perturbed_answer"),
        f"{short}_Q_A_Prob_normalised": OptionProbability(on, better="higher"),
        f"{short}_Q_A_ROUGE": RougeScore(on, "rougeL_recall", better="higher"),
        f"{short}_Truth_Ratio": TruthRatio(on, "true_better", right=TRUE_ANSWER, better="higher"),
    }


def _attacks(forget: str, holdout: str) -> dict[str, Metric]:
    """Every membership attack, in the table's order."""
    return {key: Membership(attack, forget, holdout) for key, attack in zip(MIA, MEMBERSHIP_ATTACKS, strict=True)}


TOFU = Suite(
    name="TOFU",
    sets={
        "forget": SetSpec("forget", "{forget}_perturbed", PERTURBED, limit=200, rephrased=True),
        "retain": SetSpec("retain", "retain_perturbed", PERTURBED, limit=200, rephrased=True),
        "real_authors": SetSpec("retain", "real_authors_perturbed", ("perturbed_answer",), limit=200),
        "world_facts": SetSpec("retain", "world_facts_perturbed", ("perturbed_answer",), limit=200),
        "holdout": SetSpec("retain", "{holdout}"),
    },
    metrics={
        "forget_Q_A_Prob": Probability("forget", better="lower"),
        "forget_Q_A_PARA_Prob": Probability("forget", "paraphrased_answer", better="lower"),
        "forget_Q_A_PERT_Prob": Probability("forget", "perturbed_answer"),
        "forget_Q_A_ROUGE": RougeScore("forget", "rougeL_recall", better="lower"),
        "forget_truth_ratio": TruthRatio("forget", "closer_to_1_better", better="higher"),
        "forget_quality": ForgetQuality("forget_truth_ratio", better="higher"),
        "extraction_strength": OfTrueAnswer("forget", "extraction_strength", zero_if_empty=True, better="lower"),
        "exact_memorization": OfTrueAnswer("forget", "exact_memorization", better="lower"),
        "retain_extraction_strength": OfTrueAnswer("retain", "extraction_strength", zero_if_empty=True, better="higher"),
        "retain_Q_A_Prob": Probability("retain", better="higher"),
        "retain_Q_A_PARA_Prob": Probability("retain", "paraphrased_answer", better="higher"),
        "retain_Q_A_PERT_Prob": Probability("retain", "perturbed_answer"),
        "retain_Q_A_ROUGE": RougeScore("retain", "rougeL_recall", better="higher"),
        "retain_Truth_Ratio": TruthRatio("retain", "true_better", better="higher"),
        **_knowledge("ra", "real_authors"),
        **_knowledge("wf", "world_facts"),
        "model_utility": Utility(UTILITY, better="higher"),
        **_attacks("forget", "holdout"),
        "privleak": PrivLeak("mia_min_k"),
    },
    summary=(
        "exact_memorization",
        "extraction_strength",
        "forget_Q_A_Prob",
        "forget_Q_A_ROUGE",
        "forget_quality",
        "forget_truth_ratio",
        *MIA,
        "model_utility",
        "privleak",
        "retain_extraction_strength",
    ),
    stems=True,
    kept="model_utility",
)

FOLDS = tuple(f"{part}_{fold}" for part in ("scal", "sust") for fold in (1, 2, 3, 4))
STOPS = ("\n\n", "\nQuestion", "Question:")

MUSE = Suite(
    name="MUSE",
    sets={
        "forget_knowmem": SetSpec("forget", "knowmem/forget_qa", limit=32, stops=STOPS, shots="knowmem/forget_qa_icl"),
        "retain_knowmem": SetSpec("retain", "knowmem/retain_qa", limit=32, stops=STOPS, shots="knowmem/retain_qa_icl"),
        "forget_verbmem": SetSpec("forget", "verbmem/forget", limit=128, style="text"),
        "forget_text": SetSpec("forget", "privleak/forget", style="text"),
        "holdout_text": SetSpec("retain", "privleak/holdout", style="text"),
        **{fold: SetSpec("forget", fold.replace("_", "/forget_"), style="text", part=fold[:4]) for fold in FOLDS},
    },
    metrics={
        "forget_knowmem_ROUGE": RougeScore("forget_knowmem", "rougeL_f1", better="lower"),
        "retain_knowmem_ROUGE": RougeScore("retain_knowmem", "rougeL_f1", better="higher"),
        "forget_verbmem_ROUGE": RougeScore("forget_verbmem", "rougeL_f1", better="lower"),
        "extraction_strength": OfTrueAnswer("forget_verbmem", "extraction_strength", zero_if_empty=True, better="lower"),
        "exact_memorization": OfTrueAnswer("forget_verbmem", "exact_memorization", better="lower"),
        **_attacks("forget_text", "holdout_text"),
        "privleak": PrivLeak("mia_min_k"),
        **{f"{fold}_Prob": Probability(fold, better="lower") for fold in FOLDS},
    },
    summary=(
        "exact_memorization",
        "extraction_strength",
        "forget_knowmem_ROUGE",
        "forget_verbmem_ROUGE",
        *MIA,
        "privleak",
        "retain_knowmem_ROUGE",
    ),
    stems=False,
    kept="retain_knowmem_ROUGE",
    own=tuple(f"{fold}_Prob" for fold in FOLDS),
)

LUME_KINDS: tuple[Kind, ...] = ("forget", "retain")


def _lume_sets(kind: Kind, task: str) -> dict[str, SetSpec]:
    """A task's passages to continue and its questions, both without a chat around them."""
    name = f"{kind}_{task.lower()}"
    return {
        f"{name}_passages": SetSpec(kind, f"{kind}/{task}/{CONTINUED}", limit=256, style="text"),
        f"{name}_questions": SetSpec(kind, f"{kind}/{task}/{ASKED}", limit=256, style="text"),
    }


def _lume_metrics(kind: Kind, task: str) -> dict[str, Metric]:
    name = f"{kind}_{task.lower()}"
    better: Better = "lower" if kind == "forget" else "higher"
    return {
        f"{name}_regurgitation": RougeScore(f"{name}_passages", "rougeL_recall", better=better),
        f"{name}_knowledge": ExactMatch(f"{name}_questions", better=better),
    }


_LUME_SETS = {kind: {k: s for task in TASKS for k, s in _lume_sets(kind, task).items()} for kind in LUME_KINDS}
_SIX = {kind: tuple(key for task in TASKS for key in _lume_metrics(kind, task)) for kind in LUME_KINDS}

LUME = Suite(
    name="LUME",
    sets={
        **{name: spec for kind in LUME_KINDS for name, spec in _LUME_SETS[kind].items()},
        "members": SetSpec("forget", "member", style="text"),
        "others": SetSpec("retain", "nonmember", style="text"),
    },
    metrics={
        **{key: metric for kind in LUME_KINDS for task in TASKS for key, metric in _lume_metrics(kind, task).items()},
        "retain_harmonic_mean": TaskAggregate((), _SIX["retain"], better="higher"),
        "task_aggregate": TaskAggregate(_SIX["forget"], _SIX["retain"], better="higher"),
        "mia_loss": Membership("loss", "members", "others"),
        "mia_score": MembershipScore("mia_loss", better="higher"),
        "final_score": FinalScore("task_aggregate", "mia_score", better="higher"),
    },
    summary=(*_SIX["forget"], *_SIX["retain"], "task_aggregate", "mia_loss", "mia_score", "final_score"),
    stems=True,
    kept="retain_harmonic_mean",
    convention=SEMEVAL,
    compared=tuple(zip(*(_LUME_SETS[kind] for kind in LUME_KINDS), strict=True)),
)

YEARS = Suite(
    name="YEARS",
    sets={part: SetSpec("forget", part, (WRONG_CHOICES,), limit=16) for part in ("T", "V")},
    metrics={f"{part}_accuracy": ChoiceAccuracy(part, WRONG_CHOICES, better="lower") for part in ("T", "V")},
    summary=("T_accuracy", "V_accuracy"),
    stems=True,
    kept="",
)

SUITES = {"tofu": TOFU, "muse": MUSE, "lume": LUME, "years": YEARS}

WMDP = ("wmdp_bio", "wmdp_cyber", "wmdp_chem")
"""Tasks of lm-eval, which scores them by likelihood: of three sets of questions with four options."""


def chosen(suite: Suite, *, parts: Sequence[str] = (), left_out: Sequence[str] = ()) -> Suite:
    """The suite with the parts asked for and without some of its attacks."""
    sets = {name: spec for name, spec in suite.sets.items() if not spec.part or spec.part in parts}
    metrics = {key: m for key, m in suite.metrics.items() if key not in left_out and set(m.sets) <= set(sets)}
    return replace(suite, sets=sets, metrics=metrics)


def attacked_sets(suite: Suite) -> set[str]:
    """The sets that membership attacks read."""
    return {name for metric in suite.metrics.values() if isinstance(metric, Membership) for name in metric.sets}
