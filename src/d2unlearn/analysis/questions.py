"""The requests of an analysis: the sets that are judged, and retained requests to calibrate on that are none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2unlearn.analysis.records import TriedSet
from d2unlearn.analysis.statistics import Draws, draw
from d2unlearn.artifact import read_manifest
from d2unlearn.config import AnalyzeSettings, EvaluateSettings
from d2unlearn.data.holdout import split_validation
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.errors import DataError
from d2unlearn.evaluation.runner import NamedSet, read_sets
from d2unlearn.metrics.summary import groups_of
from d2unlearn.runtime import say
from d2unlearn.schema import Example, Kind

N_BOOT = 300
"""Bootstrap draws."""


@dataclass(frozen=True)
class Questions:
    """`sets`: the judged requests, the forgotten and the retained rows first. `fit`, `threshold`: retained ones beside them.

    `unscored`: by set, the rows without a prompt, which cannot be asked.
    """

    sets: tuple[NamedSet, ...]
    fit: tuple[Example, ...]
    threshold: tuple[Example, ...]
    unscored: tuple[int, ...]

    def draws(self, seed: int) -> dict[str, Draws]:
        """Bootstrap draws of every set, over groups where all of its rows have one."""
        return {
            each.name: draw(groups_of(each.examples) or range(len(each.examples)), N_BOOT, seed + place)
            for place, each in enumerate(self.sets)
        }

    def main(self, kind: Kind) -> NamedSet:
        """The forgotten (retained) rows themselves."""
        return next(each for each in self.sets if each.kind == kind)

    def named(self, kind: Kind) -> list[str]:
        """The names of all sets of a kind."""
        return [each.name for each in self.sets if each.kind == kind]

    def tried(self) -> tuple[TriedSet, ...]:
        """What the result file says of the sets."""
        pairs = zip(self.sets, self.unscored, strict=True)
        return tuple(TriedSet(each.name, each.kind, len(each.examples), unscored) for each, unscored in pairs)


def read_questions(settings: AnalyzeSettings) -> Questions:
    """Every set that the settings name, at most `limit` rows of each, and the calibration rows, split in two by the seed.

    Calibration rows are those of the file given that `unlearn` set aside, where the model's manifest lists them, else all of
    it; without a file, half of the retained rows, which are then not judged. Raises `DataError` for a set without a prompt, and
    for fewer than four calibration rows.
    """
    found = read_sets(_as_evaluation(settings))
    asked = [NamedSet(each.name, each.kind, [e for e in each.examples if e.prompt]) for each in found]
    unscored = tuple(len(b.examples) - len(a.examples) for a, b in zip(asked, found, strict=True))
    retain = next(each for each in asked if each.kind == "retain")
    calibration, judged = _calibration_rows(settings, retain.examples, [e for each in asked for e in each.examples])
    sets = tuple(NamedSet(each.name, each.kind, judged) if each is retain else each for each in asked)
    for each in sets:
        if not each.examples:
            raise DataError(f"the set {each.name} has no row with a prompt that could be asked")
    fit, threshold = split_validation(calibration, seed=settings.seed, share=0.5)
    if len(fit) < 2 or len(threshold) < 2:
        raise DataError(f"{len(calibration)} retained rows are too few to fit on one half and set thresholds on the other")
    return Questions(sets, tuple(fit), tuple(threshold), unscored)


def _calibration_rows(
    settings: AnalyzeSettings, retain: Sequence[Example], asked: Sequence[Example]
) -> tuple[list[Example], list[Example]]:
    """(calibration rows, retained rows to judge). Of a file, no row that any set asks (`asked`) is a calibration row."""
    if settings.calibration is None:
        calibration, judged = split_validation(retain, seed=settings.seed, share=0.5)
        return calibration, judged
    judged_too = {content_hash(example) for example in asked}
    given = [e for e in read_examples(settings.calibration, group_size=settings.group_size) if e.prompt]
    rows = [example for example in given if content_hash(example) not in judged_too]
    manifest = (read_manifest(Path(settings.model)) if Path(settings.model).is_dir() else None) or {}
    set_aside = set(manifest.get("held_out", ()))
    chosen = [example for example in rows if content_hash(example) in set_aside] or rows
    which = " that unlearn set aside" if len(chosen) < len(rows) else ""
    say(f"{len(chosen)} calibration rows of {settings.calibration}{which}")
    return chosen[: settings.limit], list(retain)


def _as_evaluation(settings: AnalyzeSettings) -> EvaluateSettings:
    """The settings that `evaluate` would read the same sets by."""
    names = ("model", "forget", "retain", "output", "also_forget", "also_retain", "limit", "group_size")
    return EvaluateSettings(**{name: getattr(settings, name) for name in names})
