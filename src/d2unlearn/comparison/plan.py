"""Which runs a comparison is made of, in which order, and what each has to wait for. Pure.

For each split: the original and the retain model as they are; then, entry by entry, one tuning and one evaluation a seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

from d2unlearn.comparison.records import ORIGINAL, PROPOSED_METHOD, RETAIN_MODEL, EntryKind
from d2unlearn.comparison.search import Space, space_of
from d2unlearn.config import CompareSettings
from d2unlearn.errors import ConfigError
from d2unlearn.fields import COUNT, typed

_BENCHMARKS = ("tofu",)


@dataclass(frozen=True)
class Split:
    """What is forgotten and what kept, and what it is tested on.

    model: what to unlearn (None: the comparison's); oracle: the retain model, which never knew; also_forget, also_retain:
    further test sets; benchmark: `tofu`, with its files in `data`, where the forget split is called `forget_split` (None: as
    this split). methods, guards: other ones than the comparison's; strongest: only so many, those whose tuning scored best on
    the split `strongest_of`.
    """

    forget: str
    retain: str
    name: str = ""
    model: str | None = None
    oracle: str | None = None
    group_size: Annotated[int | None, COUNT] = None
    also_forget: dict[str, str] = field(default_factory=dict)
    also_retain: dict[str, str] = field(default_factory=dict)
    benchmark: str | None = None
    data: str | None = None
    forget_split: str | None = None
    methods: list[str] | None = None
    guards: list[str] | None = None
    strongest: int | None = None
    strongest_of: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Settings that can be run: names checked, splits and search spaces read."""

    settings: CompareSettings
    splits: tuple[Split, ...]
    methods: tuple[str, ...]
    guards: tuple[str, ...]
    spaces: Mapping[str, Space]

    def split(self, name: str) -> Split:
        return next(split for split in self.splits if split.name == name)

    def named(self, kind: EntryKind) -> tuple[str, ...]:
        """The methods, or the guards, that the comparison or one of its splits names."""
        own, further = (self.methods, "methods") if kind == "method" else (self.guards, "guards")
        return tuple(dict.fromkeys([*own, *(name for split in self.splits for name in getattr(split, further) or ())]))


@dataclass(frozen=True)
class Run:
    """One piece of work. seed None: the tuning, whose outcome all seeds share."""

    split: str
    entry: str
    kind: EntryKind
    seed: int | None

    @property
    def key(self) -> str:
        return f"{self.split}/{self.entry}/{'tune' if self.seed is None else f'seed-{self.seed}'}"

    @property
    def tuning(self) -> Run:
        return Run(self.split, self.entry, self.kind, None)


def comparison_of(
    settings: CompareSettings,
    *,
    methods: Collection[str],
    guards: Collection[str],
    is_offered: Callable[[EntryKind, str], bool] = lambda kind, name: False,
) -> Comparison:
    """Checked settings. methods, guards: the names there are; is_offered: whether another package offers a further name.

    Raises `ConfigError` with every mistake.
    """
    splits, mistakes = _splits(settings.splits)
    chosen = tuple(settings.methods or methods)
    offered: dict[EntryKind, list[str]] = {}
    asked: tuple[tuple[EntryKind, list[str], Collection[str]], ...] = (
        ("method", [*chosen, *(name for split in splits for name in split.methods or ())], methods),
        ("guard", [*settings.guards, *(name for split in splits for name in split.guards or ())], guards),
    )
    for what, given, known in asked:
        further = sorted(set(given) - set(known))
        offered[what] = [name for name in further if is_offered(what, name)]
        unknown = [name for name in further if name not in offered[what]]
        mistakes += [f"{what} {name!r} is not known; known: {', '.join(known)}" for name in unknown]
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        mistakes.append("seeds should be different numbers")
    mistakes += [f"{name} is named twice" for name, n in Counter([*chosen, *settings.guards]).items() if n > 1]
    spaces: dict[str, Space] = {}
    for name in dict.fromkeys([*methods, *guards, *offered["method"], *offered["guard"]]):
        is_guard = name in guards or name in offered["guard"]
        spaces[name], wrong = space_of(name, settings.search.get(name, {}), is_guard=is_guard)
        mistakes += wrong
    mistakes += [f"search names {name!r}, no method or guard" for name in settings.search if name not in spaces]
    if mistakes:
        raise ConfigError(mistakes)
    return Comparison(settings, splits, chosen, tuple(settings.guards), spaces)


def runs_of(comparison: Comparison, scores: Mapping[str, float]) -> list[Run]:
    """All runs, in the order in which they are best done. scores: of the methods' tunings that are done, by key.

    Entries of a split with `strongest` are known once the split that it looks at is tuned.
    """
    runs = []
    first = comparison.settings.seeds[0]
    for split in comparison.splits:
        runs.append(Run(split.name, ORIGINAL, "as_is", first))
        runs += [Run(split.name, RETAIN_MODEL, "as_is", first)] if split.oracle is not None else []
        for name, kind in entries_of(comparison, split, scores):
            runs += [Run(split.name, name, kind, seed) for seed in (None, *comparison.settings.seeds)]
    return runs


def entries_of(comparison: Comparison, split: Split, scores: Mapping[str, float]) -> list[tuple[str, EntryKind]]:
    """The split's methods and guards. Of the strongest methods of another split, none while any of those is not tuned.

    Who is strongest is asked of all methods tuned there, also of those that are not in this comparison. The proposed method is
    among them in any case, since it is what they are compared with.
    """
    methods = list(comparison.methods if split.methods is None else split.methods)
    if split.strongest is not None:
        other = comparison.split(str(split.strongest_of))
        known = [(name, Run(other.name, name, "method", None).key) for name in comparison.spaces]
        if any(key not in scores for name, key in known if name in (other.methods or comparison.methods)):
            return []
        ranked = sorted((-scores[key], index, name) for index, (name, key) in enumerate(known) if key in scores)
        methods = [name for name in methods if name in {PROPOSED_METHOD, *(name for *_, name in ranked[: split.strongest])}]
    guards = comparison.guards if split.guards is None else split.guards
    return [*((name, "method") for name in methods), *((name, "guard") for name in guards)]


def needs_of(comparison: Comparison, run: Run) -> list[str]:
    """The keys of what has to be done before a run can begin."""
    needs = [] if run.seed is None or run.kind == "as_is" else [run.tuning.key]
    if reads_logs(comparison.split(run.split), run):
        needs.append(Run(run.split, RETAIN_MODEL, "as_is", comparison.settings.seeds[0]).key)
    return needs


def reads_logs(split: Split, run: Run) -> bool:
    """Whether a benchmark holds the run's model against the retain model's logs."""
    evaluated = run.seed is not None and run.kind != "guard" and run.entry != RETAIN_MODEL
    return evaluated and split.benchmark is not None and split.oracle is not None


def awaited(comparison: Comparison, split: Split, scores: Mapping[str, float]) -> str:
    """Whose tuning decides on the entries of a split; empty where they are known."""
    if split.strongest is None or entries_of(comparison, split, scores):
        return ""
    return f"the {split.strongest} strongest of {split.strongest_of}, once all of those are tuned"


def find_run(runs: Sequence[Run], key: str) -> Run:
    """The run of a key. Raises `ConfigError` when there is none."""
    for run in runs:
        if run.key == key:
            return run
    raise ConfigError([f"there is no run {key!r} in this comparison (--plan lists them)"])


def _splits(given: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[Split, ...], list[str]]:
    splits, mistakes = [], [] if given else ["splits names nothing to forget"]
    hints = {name: hint for name, hint in get_type_hints(Split, include_extras=True).items() if name != "name"}
    for name, entries in given.items():
        values, wrong = typed(entries, hints)
        wrong += [f"{key} is missing" for key in ("forget", "retain") if key not in entries]
        if not wrong:
            split = Split(**{**values, "name": name})
            wrong += _wrong_in(split, list(given))
            splits.append(split)
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            wrong.append("its name should be of letters, digits, '-', '_' and '.': folders are called after it")
        mistakes += [f"split {name}: {mistake}" for mistake in wrong]
    return tuple(splits), mistakes


def _wrong_in(split: Split, names: Sequence[str]) -> list[str]:
    wrong = []
    if split.benchmark is not None and split.benchmark not in _BENCHMARKS:
        wrong.append(f"benchmark should be {' or '.join(_BENCHMARKS)}, not {split.benchmark!r}")
    if split.benchmark is not None and split.data is None:
        wrong.append("benchmark needs data: the folder with its files")
    if (split.strongest is None) != (split.strongest_of is None):
        wrong.append("strongest and strongest_of go together")
    if split.strongest_of is not None and split.strongest_of not in names[: names.index(split.name)]:
        wrong.append(f"strongest_of should be a split that stands before it, not {split.strongest_of!r}")
    taken = {"forget", "retain"} & {*split.also_forget, *split.also_retain}
    return [*wrong, *(f"a further set cannot be called {name}" for name in sorted(taken))]
