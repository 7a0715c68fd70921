"""How the report writes numbers and names: one spelling for the verdict, the tables and the figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from d2unlearn.schema import GUARDED_PREFIX, MetricResult

NOT_SCORED = "–"


@dataclass(frozen=True)
class MetricWords:
    """A metric's label and what it says, in one line."""

    label: str
    meaning: str
    percent: bool = False


METRIC_WORDS = {
    "extraction_strength": MetricWords("Extraction strength", "share drawn out by the answer’s prefix"),
    "exact_memorization": MetricWords("Exact memorisation", "share of answer tokens predicted exactly"),
    "exact_memorization_without_end": MetricWords("Tokens right", "exact memorisation, the answer’s end token left out"),
    "kl_from_original": MetricWords("KL to the original", "nats a token, the answer’s end token left out"),
    "answer_probability": MetricWords("Answer probability", "per-token probability of the true answer"),
    "rouge_l_recall": MetricWords("ROUGE-L recall", "written answer against the true one"),
    "leak_rate": MetricWords("Leaks", "answers that hold half of the truth’s words", percent=True),
    "token_entropy": MetricWords("Token entropy", "variety of the words written"),
    "refusal_rate": MetricWords("Refusal rate", "share of questions refused", percent=True),
    "auroc": MetricWords("AUROC", "chance that a forget question scores higher"),
    "fpr_at_95_tpr": MetricWords("FPR at 95% TPR", "retained caught along with 95% of forget", percent=True),
    "ks_distance": MetricWords("KS distance", "largest gap between the distributions"),
}
"""In the order of the tables. A metric that is not here is shown under its own name, after these."""
ON_RETAINED = {"leak_rate": MetricWords("Answered rightly", "answers that hold half of the truth’s words", percent=True)}
"""What is called otherwise where it is wanted."""


def split_name(name: str) -> tuple[str, str]:
    """A metric's name as (known name, suffix): `auroc_paraphrased` is ("auroc", "paraphrased").

    A known name has an empty suffix; an unknown one is returned whole, with an empty suffix.
    """
    for known in sorted(METRIC_WORDS, key=len, reverse=True):
        rest = name.removeprefix(known)
        if rest != name and rest[:1] in ("", "_", " ", ":", "/", ".", "-", "("):
            return known, rest.strip(" _:/.-()")
    return name, ""


def metric_words(name: str) -> MetricWords:
    """Label and meaning of a metric; an unknown one has its own name for a label."""
    known, suffix = split_name(name)
    words = METRIC_WORDS.get(known, MetricWords(name, ""))
    return MetricWords(f"{words.label}, {readable(suffix)}", words.meaning, words.percent) if suffix else words


def label_in_text(name: str) -> str:
    """A metric's label as it stands within a sentence."""
    return metric_words(name).label.lower()


def order_of(name: str) -> int:
    """Where a metric stands in a table."""
    known = list(METRIC_WORDS)
    return known.index(split_name(name)[0]) if split_name(name)[0] in known else len(known)


def fixed(value: float, decimals: int = 3) -> str:
    """A number with so many decimals and a true minus sign; a dash for what was not scored."""
    if math.isnan(value):
        return NOT_SCORED
    text = f"{value:.{decimals}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def percent(share: float) -> str:
    """A share with one decimal, never rounded to 0% or 100% unless it is exactly that; a dash for NaN."""
    if math.isnan(share):
        return NOT_SCORED
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"


def stated(share: float) -> str:
    """A share that somebody chose, as they would write it: `1%`, `0.5%`; a dash for NaN."""
    return NOT_SCORED if math.isnan(share) else f"{100 * share:g}%"


def metric_value(metric: MetricResult) -> str:
    """The metric's value as its kind is written, without its unit."""
    return _written(metric, metric.value)


def metric_interval(metric: MetricResult) -> str:
    """`0.981 to 0.990`; empty when there is no interval."""
    if math.isnan(metric.low) or math.isnan(metric.high):
        return ""
    return f"{_written(metric, metric.low)} to {_written(metric, metric.high)}"


def _written(metric: MetricResult, value: float) -> str:
    return percent(value) if metric_words(metric.name.removeprefix(GUARDED_PREFIX)).percent else fixed(value)


def folder_name(source: str) -> str:
    """The last part of a folder's path; a name on a hub (`owner/name`) as it is."""
    parts = [part for part in source.replace("\\", "/").split("/") if part]
    return source if len(parts) < 3 and not source.startswith((".", "/", "~")) else parts[-1]


def readable(name: str) -> str:
    """A key or a set's name as a reader sees it: `world_facts` is `world facts`."""
    return name.replace("_", " ").strip() or name


def shorten(text: str, limit: int = 400) -> str:
    """The text, or its first `limit` characters and how many more there are."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} … ({len(text) - limit} more characters)"
