"""The tables of docs/audit.md, from the code, and the audits' section of docs/results.md, from the kept records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from d2unlearn.audit.claims import CLAIMS, FORGET
from d2unlearn.audit.records import AttackResult, Audit, read_audit
from d2unlearn.audit.suite import ATTACKS
from d2unlearn.audit.summary import in_words
from d2unlearn.schema import AUDIT_FILE, MetricResult
from tables import table

LEVELS = {"thorough": "thorough", "quick": "quick", "exhaustive": "exhaustive"}
MARKS = {"holds": "holds", "does not hold": "**does not hold**", "not shown": "not shown"}
SECTIONS = {"layers": "Where it hides", "paraphrases": "Asking otherwise", "universal_prefix": "The gate"}
"""Attacks that docs/audit.md describes under another heading than their own."""
EXPECTED = (
    *(f"{method}-{seed}" for method in ("eua", "deep_eua") for seed in range(3)),
    *("npo", "rmu", "simnpo", "gradient_difference", "pdu", "input_classifier"),
)
"""The runs of experiments/audit_results.py."""
DIAGNOSIS: tuple[tuple[str, str, dict[str, str | float], float], ...] = (
    ("a constant vector after layer 0", "storage", {"constant vector after layer": 0, "times": 1.0}, 0.04),
    ("a constant vector after layer 1", "storage", {"constant vector after layer": 1, "times": 1.0}, 0.49),
    ("a constant vector after layer 2", "storage", {"constant vector after layer": 2, "times": 1.0}, 0.33),
    ("layer 0 put back", "storage", {"restored": "layer 0 restored"}, 0.64),
    ("layer 1 put back", "storage", {"restored": "layer 1 restored"}, 0.21),
    ("all attention put back", "storage", {"restored": "attention restored"}, 0.90),
    ("all MLPs put back", "storage", {"restored": "MLP restored"}, 0.65),
    ("the original's residual after layer 0", "storage", {"the original's residual after layer": 0}, 0.91),
    ("its residual into the original after layer 0", "storage", {"its residual into the original after layer": 0}, 0.79),
    ("its residual into the original after layer 1", "storage", {"its residual into the original after layer": 1}, 0.42),
    (
        "whole authors relearned, 20 steps at 5e-4",
        "relearning",
        {"relearned": "whole groups", "learning rate": 5e-4, "steps": 20},
        0.832,
    ),
    (
        "spread rows relearned, 80 steps at 5e-4",
        "relearning",
        {"relearned": "spread over groups", "learning rate": 5e-4, "steps": 80},
        0.791,
    ),
    (
        "half of each author relearned, 80 steps at 5e-4",
        "relearning",
        {"relearned": "half of each group", "learning rate": 5e-4, "steps": 80},
        0.915,
    ),
    ("one row relearned, 20 steps at 5e-4", "relearning", {"relearned": "one row", "learning rate": 5e-4, "steps": 20}, 0.43),
)
"""What an earlier diagnosis of EUA on the same model read with scripts of its own, on 60 rows: what, attack, setting, value."""
NOTHING = "No audits are kept yet: `experiments/audit_results.py` makes them.\n"


def audit_blocks(kept: Path) -> dict[str, str]:
    """What docs/audit.md says of the code."""
    claims = [[text.title, text.measured] for text in CLAIMS.values()]
    attacks = [
        [
            f"[{plan.title}](#{SECTIONS.get(name, plan.title).lower().replace(' ', '-')})",
            f"`{name}`",
            ", ".join(CLAIMS[claim].title.lower() for claim in plan.claims) or "none: reported",
            ", ".join(plan.subjects),
            "yes" if plan.uses_original else "",
        ]
        for name, plan in ATTACKS.items()
    ]
    return {
        "audit-agreement": agreement_table(read_audit(kept / "thorough" / "eua-0.json")),
        "audit-claims": table(["claim", "measured"], claims, "ll"),
        "audit-attacks": table(["attack", "`--attack`", "counts for", "made on", "needs the original"], attacks, "lllll"),
    }


def agreement_table(record: Audit) -> str:
    """What the audit reads of EUA where the earlier diagnosis read it too."""
    rows = []
    for what, name, setting, earlier in DIAGNOSIS:
        read = next(
            each.values["artifact"].value
            for attack in record.attacks
            if attack.name == name
            for each in attack.settings
            if dict(each.setting) == setting
        )
        rows.append([what, f"{earlier:.2f}", f"{read:.3f}"])
    return table(["EUA, answer probability of forgotten rows", "earlier diagnosis", "audit, seed 0"], rows, "lrr")


def audit_section(kept: Path) -> str:
    """The audits of docs/results.md, level by level."""
    missing = [name for name in EXPECTED if not (kept / "quick" / f"{name}.json").is_file()]
    parts = ["## Audits\n", ABOUT, *([f"Not audited yet: {', '.join(missing)}.\n"] if missing else [])]
    found = False
    for level in LEVELS:
        records = {path.stem: read_audit(path) for path in sorted((kept / level).glob("*.json"))}
        if records:
            found = True
            parts += [f"### {level.capitalize()}\n", *_level(records)]
    quickstart = kept / QUICKSTART / AUDIT_FILE
    if quickstart.is_file():
        parts += [QUICKSTART_ABOUT, *_level({"artifact": read_audit(quickstart)})]
    return "\n".join(parts if found else [*parts, NOTHING])


QUICKSTART = "quickstart"
QUICKSTART_ABOUT = """\
### The quickstart's world

`d2unlearn audit --quick` on what `d2unlearn quickstart` leaves: people and places that were made up, a model of its own size
taught on them, and facts of the same kind that it was never shown in place of a model that never knew (a weaker control). The
numbers above are of TOFU, these of that world alone. [Its page](../benchmarks/results/audit/quickstart/audit.html).
"""

ABOUT = """\
`d2unlearn audit` on TOFU forget10 (4.2M parameters, the model that never knew taught without the forget rows; 2-core x86-64
CPU, float32), made by `experiments/audit_results.py`: EUA and deep EUA as `unlearn` trains them by default, one row for a seed,
the other methods with the parameters that the comparison tuned, seed 0; `input_classifier` is the original behind that guard.
The quick level's few rows can find and clear nothing. What a claim and an attack is: [audit.md](audit.md).
"""


def _level(records: Mapping[str, Audit]) -> list[str]:
    claims = [[name, *(_claim(record, claim) for claim in CLAIMS)] for name, record in records.items()]
    left_out = sorted({f"{name}: {attack} ({reason})" for name, r in records.items() for attack, reason in r.left_out.items()})
    parts = [
        table(["", *(text.title for text in CLAIMS.values())], claims, "l" + "l" * len(CLAIMS)),
        "Each attack in its worst setting, on the artifact (on what it is held against); the setting is the first run's:\n",
        _attacks(records),
    ]
    return [*parts, f"Not made: {'; '.join(left_out)}.\n"] if left_out else parts


def _claim(record: Audit, claim: str) -> str:
    result = next(each for each in record.claims if each.name == claim)
    return f"{MARKS[result.verdict]}: {result.attack}, {result.setting}" if result.attack else MARKS[result.verdict]


def _attacks(records: Mapping[str, Audit]) -> str:
    """A row for each attack, claim and way to answer; a column a run."""
    keys = dict.fromkeys(
        (attack.name, attack.claim, attack.guarded)
        for record in records.values()
        for attack in record.attacks
        if attack.claim and attack.deciding is not None
    )
    rows = []
    for key in keys:
        of_runs = [_found(record.attacks, key) for record in records.values()]
        first = next(attack for attack in of_runs if attack is not None)
        decided = first.settings[first.deciding or 0]
        rows_asked = "" if decided.rows == FORGET else f", {decided.rows} rows"
        way = " (guarded)" if first.guarded and first.claim != "nothing_else" else ""
        rows.append(
            [
                f"{first.title}{way}: {CLAIMS[first.claim].title.lower()}",  # type: ignore[index]
                f"{in_words(decided.setting)}{rows_asked}: {decided.measure.replace('_', ' ')}",  # type: ignore[arg-type]
                *map(decided_cell, of_runs),
            ]
        )
    return table(["attack: claim", "setting: measure", *records], rows, "ll" + "r" * len(records))


def _found(attacks: Sequence[AttackResult], key: tuple[str, str, bool]) -> AttackResult | None:
    return next((each for each in attacks if (each.name, each.claim, each.guarded) == key and each.deciding is not None), None)


def decided_cell(attack: AttackResult | None) -> str:
    """The number that decides an attack, on the artifact (on what it is held against)."""
    if attack is None:
        return "–"
    values = attack.settings[attack.deciding or 0].values
    beside = values.get("oracle") or values.get("never_seen")
    return f"{_value(values['artifact'])} ({_value(beside)})" if beside else _value(values["artifact"])


def _value(metric: MetricResult | None) -> str:
    return "–" if metric is None else f"{metric.value:.3f}"
