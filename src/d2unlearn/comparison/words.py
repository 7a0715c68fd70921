"""Where EUA wins, ties and loses, in plain words: one paragraph a split, and below it one line a respect. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from d2unlearn.comparison.outcomes import ATTACKED, COMEBACK, LEVEL, REFUSED, TOLD, Outcome, Result
from d2unlearn.comparison.records import ORACLE, PROPOSED_METHOD
from d2unlearn.comparison.table import FORGET_QUALITY, UTILITY, Row, SplitTable
from d2unlearn.schema import Better

RESPECT_WORDS = {
    "extraction_strength": "extraction strength on {}",
    TOLD: "what is still told of {}",
    REFUSED: "refusals of {}",
    COMEBACK: "what is there after relearning",
}
SUMMARY = "Respect by respect, and what counts as a tie"
VERBS: dict[Result, str] = {"win": "wins against", "tie": "ties with", "loss": "loses to"}
THEMES: dict[str, tuple[str, str, Better]] = {
    "forget.extraction_strength": ("Of what was to be forgotten its weights hold", "", "lower"),
    "retain.extraction_strength": ("Of everything else they keep", "", "higher"),
    f"forget.{TOLD}": ("Of what was to be forgotten it tells, behind its gate,", "", "lower"),
    f"retain.{TOLD}": ("Of everything else it tells", "", "higher"),
    f"forget.{REFUSED}": ("Its gate refuses what was to be forgotten", " often", "higher"),
    f"retain.{REFUSED}": ("It refuses everything else", " often", "lower"),
    "comeback": ("After relearning its weights hold", "", "lower"),
}
"""Theme -> how its sentence begins, `more` or `more often`, and which is better. Several sets may belong to one theme."""
MORE_OR_LESS: dict[Better, str] = {"lower": "less", "higher": "more"}
NAMED = 4
"""So many contestants are listed by name in the paragraph; more are counted, and named in the lines below it."""
LOST = 0.01
"""The model utility below which a model is said to know nothing any more."""


def plain_words(table: SplitTable) -> str:
    """The paragraph: theme by theme against whom the proposed method wins, ties and loses, and how far from the oracle it is.

    Within a theme a rival is won against where it wins on one of the sets and loses on none. Empty without a rival.
    """
    if not table.outcomes:
        return ""
    rivals = list(dict.fromkeys(each.contestant for each in table.outcomes))
    lost = [
        row.contestant
        for row in table.rows
        if row.kind == "method" and UTILITY in row.cells and row.cells[UTILITY].value < LOST
    ]
    standing = [each for each in table.outcomes if each.contestant not in lost]
    sentences = [
        f"In {len(table.outcomes)} comparisons with {len(rivals)} other{'s' if len(rivals) > 1 else ''} "
        f"{PROPOSED_METHOD} {_counted(table.outcomes)}.",
        f"Hardly anything works any more of {' and '.join(lost)} (model utility below {LOST:g}); without them it "
        f"{_counted(standing)}."
        if lost
        else "",
        *(_theme(theme, [each for each in table.outcomes if each.theme == theme]) for theme in THEMES),
        _relearned(table.rows),
        _forget_quality(table.rows),
    ]
    return " ".join(each for each in sentences if each)


def reading(table: SplitTable) -> str:
    """How the results come about, and how the lines are read."""
    several = any(len(row.seeds) > 1 for row in table.rows)
    sentences = [
        f"Against {PROPOSED_METHOD}, on the same test questions; in brackets {PROPOSED_METHOD}'s mean minus theirs. "
        "It is a tie unless "
        f"chance explains the difference in fewer than {LEVEL:.0%} of cases, with Holm's adjustment for the contestants of a "
        "line, not for the number of lines.",
        "Chance is that of other seeds and of other authors, or whatever questions are grouped by (two crossed random "
        "effects); after relearning, of other seeds alone."
        if several
        else "Chance is that of other authors, or whatever questions are grouped by; with one seed nothing is known of other "
        "trainings.",
        "What tuning chose, the original and the oracle are taken as they are. What is still told is ROUGE-L recall behind "
        "the gate or guard.",
        "This and extraction strength on forgotten questions count from the oracle's up: less than a model that never knew is "
        "no advantage."
        if any(row.contestant == ORACLE for row in table.rows)
        else "",
        "The paragraph joins all sets of a kind: more than X is more on at least one of them, and less on none.",
        f"Refusals are not compared with {', '.join(table.ungated)}: these answer, in words of refusal or otherwise."
        if table.ungated
        else "",
    ]
    return " ".join(each for each in sentences if each)


def who_wins(table: SplitTable) -> str:
    """The paragraph, and folded below it the lines and how they come about, as markdown."""
    if not table.outcomes:
        there = any(row.contestant == PROPOSED_METHOD for row in table.rows)
        return f"{'Nothing else' if there else PROPOSED_METHOD} is {'' if there else 'not '}judged, so nothing is compared.\n"
    lines = "\n".join(in_words(table.outcomes))
    return f"{plain_words(table)}\n\n<details><summary>{SUMMARY}</summary>\n\n{reading(table)}\n\n{lines}\n\n</details>\n"


def in_words(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """One line a respect: whom the proposed method wins against, ties with and loses to."""
    for respect in dict.fromkeys(each.respect for each in outcomes):
        chosen = [each for each in outcomes if each.respect == respect]
        parts = []
        for result, verb in VERBS.items():
            names = [f"{each.contestant} ({0.0 - each.difference:+.3f})" for each in chosen if each.result == result]
            parts += [f"{verb} {', '.join(names)}"] if names else []
        yield f"- {respect_words(respect)}: {PROPOSED_METHOD} {'; '.join(parts)}."


def respect_words(respect: str) -> str:
    """A respect as a reader sees it."""
    if respect in RESPECT_WORDS:
        return RESPECT_WORDS[respect]
    name, metric = respect.split(".", 1)
    return RESPECT_WORDS[metric].format(name.replace("_", " "))


def _counted(outcomes: Sequence[Outcome]) -> str:
    """`wins 3, ties in 2 and loses 1`."""
    won, tied, lost = (sum(1 for each in outcomes if each.result == result) for result in VERBS)
    return f"wins {won}, ties in {tied} and loses {lost}"


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
    parts = [
        f"{words} {_listed(names, len(found), 'any of the' if words.startswith('not') else 'all')}"
        for words, names in groups.items()
        if names
    ]
    return f"{lead} {'; '.join(parts)}." if parts else ""


def _relearned(rows: Sequence[Row]) -> str:
    """How much comes back, beside a model that never knew."""
    own, never = (_number(rows, name, COMEBACK) for name in (PROPOSED_METHOD, ORACLE))
    if math.isnan(own) or math.isnan(never):
        return ""
    return (
        f"After {ATTACKED[1]} steps of relearning a tenth of the forgotten rows its answer probability on the others is "
        f"{own:.3f}, the oracle's {never:.3f}."
    )


def _forget_quality(rows: Sequence[Row]) -> str:
    """Whose answers a test tells from the oracle's, of the methods that it was made for."""
    own = _number(rows, PROPOSED_METHOD, FORGET_QUALITY)
    methods = [row.contestant for row in rows if row.kind == "method" and row.contestant != PROPOSED_METHOD]
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


def _listed(names: Sequence[str], everybody: int, of_all: str) -> str:
    if len(names) == everybody > 1:
        return f"{of_all} {everybody} others"
    return ", ".join(names) if len(names) <= NAMED else f"{len(names)} of {everybody}"
