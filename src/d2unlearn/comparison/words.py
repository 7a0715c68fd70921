"""Where EUA wins, ties and loses, in plain words: one paragraph a split, and below it one line a respect. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from d2unlearn.comparison.outcomes import BASELINE, COMEBACK, LEVEL, REFUSED, TOLD, Outcome, Result
from d2unlearn.comparison.records import ORACLE
from d2unlearn.comparison.table import FORGET_QUALITY, UTILITY, Row, SplitTable
from d2unlearn.schema import Better

RESPECT_WORDS = {
    "extraction_strength": "extraction strength on {}",
    TOLD: "what is still told of {}",
    REFUSED: "refusals of {}",
    COMEBACK: "what relearning brings back",
}
VERBS: dict[Result, str] = {"win": "wins against", "tie": "ties with", "loss": "loses to"}
THEMES: dict[str, tuple[str, str, Better]] = {
    "forget.extraction_strength": ("Of what was to be forgotten its weights hold", "", "lower"),
    "retain.extraction_strength": ("Of everything else they keep", "", "higher"),
    f"forget.{TOLD}": ("Behind its gate, of what was to be forgotten it tells", "", "lower"),
    f"retain.{TOLD}": ("Of everything else it tells", "", "higher"),
    f"forget.{REFUSED}": ("Its gate refuses what was to be forgotten", " often", "higher"),
    f"retain.{REFUSED}": ("It refuses everything else", " often", "lower"),
    "comeback": ("By relearning it gets back", "", "lower"),
}
"""Theme -> how its sentence begins, `more` or `more often`, and which is better. Several sets may belong to one theme."""
MORE_OR_LESS: dict[Better, str] = {"lower": "less", "higher": "more"}
NAMED = 4
"""So many contestants are listed by name in the paragraph; more are counted, and named in the lines below it."""
LOST = 0.01
"""The model utility below which a model is said to know nothing any more."""


def plain_words(table: SplitTable) -> str:
    """The paragraph: theme by theme against whom the baseline wins, ties and loses, and how far from the oracle it is.

    Within a theme a rival is won against where the baseline wins on one of the sets and loses on none. Empty without a rival.
    """
    if not table.outcomes:
        return ""
    results = [each.result for each in table.outcomes]
    rivals = list(dict.fromkeys(each.contestant for each in table.outcomes))
    sentences = [
        f"In {len(results)} comparisons with {len(rivals)} others {BASELINE} wins {results.count('win')}, ties in "
        f"{results.count('tie')} and loses {results.count('loss')}.",
        _lost(table.rows),
        *(_theme(theme, [each for each in table.outcomes if each.theme == theme]) for theme in THEMES),
        _relearned(table.rows),
        _forget_quality(table.rows),
    ]
    return " ".join(each for each in sentences if each)


def reading(table: SplitTable) -> str:
    """How the results come about, and how the lines are read."""
    said = (
        f"Against {BASELINE}, on the same test questions; in brackets {BASELINE}'s mean minus theirs. A tie is a difference "
        f"that chance, of other seeds and other authors, explains in {LEVEL:.0%} of cases or more: two crossed random effects, "
        "Holm's adjustment for the contestants of a line, not for the number of lines. What is still told is ROUGE-L recall "
        "behind the gate or guard. This and extraction strength on forgotten questions count from the oracle's up: less than a "
        "model that never knew is no advantage. A sentence about several sets of questions goes by those that differ, as long "
        "as they differ the same way."
    )
    if not table.ungated:
        return said
    return f"{said} Refusals are not compared with {', '.join(table.ungated)}: these answer, in words of refusal or otherwise."


def who_wins(table: SplitTable) -> str:
    """The paragraph, how its numbers come about, and the lines, as markdown."""
    if not table.outcomes:
        return "No rival is judged yet.\n"
    return f"{plain_words(table)}\n\n{reading(table)}\n\n" + "\n".join(in_words(table.outcomes)) + "\n"


def in_words(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """One line a respect: whom the baseline wins against, ties with and loses to."""
    for respect in dict.fromkeys(each.respect for each in outcomes):
        chosen = [each for each in outcomes if each.respect == respect]
        parts = []
        for result, verb in VERBS.items():
            names = [f"{each.contestant} ({0.0 - each.difference:+.3f})" for each in chosen if each.result == result]
            parts += [f"{verb} {', '.join(names)}"] if names else []
        yield f"- {respect_words(respect)}: {BASELINE} {'; '.join(parts)}."


def respect_words(respect: str) -> str:
    """A respect as a reader sees it."""
    if respect in RESPECT_WORDS:
        return RESPECT_WORDS[respect]
    name, metric = respect.split(".", 1)
    return RESPECT_WORDS[metric].format(name.replace("_", " "))


def _lost(rows: Sequence[Row]) -> str:
    """Against whom a win says little."""
    names = [row.contestant for row in rows if row.kind == "method" and _number(rows, row.contestant, UTILITY) < LOST]
    return f"Against {' and '.join(names)} a win says little: model utility is below {LOST:g} there." if names else ""


def _theme(theme: str, outcomes: Sequence[Outcome]) -> str:
    """`Of everything else they keep more than a; less than b; not clearly more or less than c.` Empty: nothing was compared."""
    found: dict[str, set[Result]] = {}
    for each in outcomes:
        found.setdefault(each.contestant, set()).add(each.result)
    lead, often, better = THEMES[theme]
    good, bad = (f"{MORE_OR_LESS[each]}{often}" for each in (better, "lower" if better == "higher" else "higher"))
    groups = {
        f"{good} than": [name for name, results in found.items() if "win" in results and "loss" not in results],
        f"{bad} than": [name for name, results in found.items() if "loss" in results and "win" not in results],
        f"now more, now less{often} than": [name for name, results in found.items() if {"win", "loss"} <= results],
        f"not clearly more or less{often} than": [name for name, results in found.items() if results == {"tie"}],
    }
    parts = [f"{words} {_listed(names, len(found))}" for words, names in groups.items() if names]
    return f"{lead} {'; '.join(parts)}." if parts else ""


def _relearned(rows: Sequence[Row]) -> str:
    """How much comes back, beside a model that never knew."""
    own, never = (_number(rows, name, COMEBACK) for name in (BASELINE, ORACLE))
    if math.isnan(own) or math.isnan(never):
        return ""
    steps = COMEBACK.rpartition(".")[2]
    return (
        f"After {steps} steps of relearning a tenth of the forgotten rows its answer probability on the others is {own:.3f}, "
        f"the oracle's {never:.3f}."
    )


def _forget_quality(rows: Sequence[Row]) -> str:
    """Whose answers a test tells from the oracle's, of the methods that it was made for."""
    own = _number(rows, BASELINE, FORGET_QUALITY)
    methods = [row.contestant for row in rows if row.kind == "method" and row.contestant != BASELINE]
    tested = {name: p for name in methods if not math.isnan(p := _number(rows, name, FORGET_QUALITY))}
    if math.isnan(own):
        return ""
    told = own < LEVEL
    said = f"Forget quality {'tells' if told else 'does not tell'} its answers from the oracle's (p {own:.1e})"
    if not tested:
        return f"{said}."
    alike = [
        f"{name} (p {p:.2g}, model utility {_number(rows, name, UTILITY):.3f})" for name, p in tested.items() if p >= LEVEL
    ]
    if alike:
        return f"{said}, {'not' if told else 'nor'} those of {', '.join(alike)}."
    return f"{said}, those of every other method {'as well' if told else 'it does'}."


def _number(rows: Sequence[Row], contestant: str, key: str) -> float:
    cells = next((row.cells for row in rows if row.contestant == contestant), {})
    return cells[key].value if key in cells else math.nan


def _listed(names: Sequence[str], everybody: int) -> str:
    if len(names) == everybody > 1:
        return f"all {everybody} others"
    return ", ".join(names) if len(names) <= NAMED else f"{len(names)} of {everybody}"
