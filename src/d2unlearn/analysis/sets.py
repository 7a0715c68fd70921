"""The requests of an analysis: the sets that are judged, and retained requests to calibrate on that are none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2unlearn.analysis.records import SetSummary
from d2unlearn.analysis.roc import BootstrapWeights
from d2unlearn.artifact import read_manifest
from d2unlearn.config import AnalyzeSettings, EvaluateSettings
from d2unlearn.data.holdout import split_validation
from d2unlearn.data.identity import folded_key, is_among
from d2unlearn.data.records import read_examples
from d2unlearn.errors import DataError
from d2unlearn.evaluation.runner import NamedSet, read_sets
from d2unlearn.metrics.summary import groups_of
from d2unlearn.runtime import say
from d2unlearn.schema import Example, Kind

N_BOOT = 300
"""Bootstrap draws."""


@dataclass(frozen=True)
class AnalysisSets:
    """`judged`: the forgotten and the retained rows first. `fit`, `threshold`: retained calibration rows beside them.

    `unscored`: by judged set, the rows without a prompt, which cannot be asked.
    """

    judged: tuple[NamedSet, ...]
    fit: tuple[Example, ...]
    threshold: tuple[Example, ...]
    unscored: tuple[int, ...]

    def weights(self, seed: int) -> dict[str, BootstrapWeights]:
        """Bootstrap draws of every judged set."""
        return {named.name: bootstrap_weights(named.examples, seed + number) for number, named in enumerate(self.judged)}

    def main(self, kind: Kind) -> NamedSet:
        """The forgotten (retained) rows themselves."""
        return next(named for named in self.judged if named.kind == kind)

    def named(self, kind: Kind) -> list[str]:
        """The names of all sets of a kind."""
        return [named.name for named in self.judged if named.kind == kind]

    def summaries(self) -> tuple[SetSummary, ...]:
        """What the result file says of the sets."""
        pairs = zip(self.judged, self.unscored, strict=True)
        return tuple(SetSummary(named.name, named.kind, len(named.examples), unscored) for named, unscored in pairs)


def bootstrap_weights(examples: Sequence[Example], seed: int) -> BootstrapWeights:
    """Draws over groups where all of the rows have one."""
    return BootstrapWeights.draw(groups_of(examples) or range(len(examples)), N_BOOT, seed)


def read_analysis_sets(settings: AnalyzeSettings) -> AnalysisSets:
    """Every set that the settings name, at most `limit` rows of each, and the calibration rows, split in two by the seed.

    Calibration rows are those of the file given that `unlearn` set aside, where the model's manifest lists them, else all of
    it; without a file, half of the retained rows, which are then not judged. Raises `DataError` for a set without a prompt, and
    for fewer than four calibration rows.
    """
    names = ("model", "forget", "retain", "output", "also_forget", "also_retain", "limit", "group_size", "columns")
    given = read_sets(EvaluateSettings(**{name: getattr(settings, name) for name in names}))
    judged = [NamedSet(named.name, named.kind, [row for row in named.examples if row.prompt]) for named in given]
    unscored = tuple(len(named.examples) - len(asked.examples) for named, asked in zip(given, judged, strict=True))
    if settings.calibration is None:
        at = [named.kind for named in judged].index("retain")
        calibration, kept = split_validation(judged[at].examples, seed=settings.seed, share=0.5)
        judged[at] = NamedSet(judged[at].name, "retain", kept)
    else:
        rows = read_examples(settings.calibration, group_size=settings.group_size, columns=settings.columns)
        asked = {folded_key(row) for named in judged for row in named.examples}
        rest = [row for row in rows if row.prompt and folded_key(row) not in asked]
        calibration = _set_aside(rest, Path(settings.model), settings.calibration)[: settings.limit]
    for named in judged:
        if not named.examples:
            raise DataError(f"the set {named.name} has no row with a prompt that could be asked")
    fit, threshold = split_validation(calibration, seed=settings.seed, share=0.5)
    if len(fit) < 2 or len(threshold) < 2:
        raise DataError(f"{len(calibration)} retained rows are too few to fit on one half and set thresholds on the other")
    return AnalysisSets(tuple(judged), tuple(fit), tuple(threshold), unscored)


def _set_aside(rows: Sequence[Example], model: Path, source: str) -> list[Example]:
    """The rows that `unlearn` set aside for the model, where its manifest lists some of them; else all, which is said."""
    held_out = set(((read_manifest(model) if model.is_dir() else None) or {}).get("held_out", ()))
    chosen = [row for row in rows if is_among(row, held_out)]
    if chosen:
        say(f"{len(chosen)} calibration rows of {source} that unlearn set aside")
        return chosen
    why = (
        f"none of the {len(held_out)} that unlearn set aside are there"
        if held_out
        else f"{model} says of none that it was set aside"
    )
    say(
        f"all {len(rows)} calibration rows of {source}: {why}, so nothing shows that the model was not trained on them, and "
        "thresholds set on rows that it was trained on refuse more unseen ones than they say"
    )
    return list(rows)
