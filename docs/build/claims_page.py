"""The tables of docs/claims.md: what each sentence of the abstract stands on, and its verdict, from kept results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from audit_page import LEVELS, decided_cell
from comparison_page import kept as kept_comparison
from d2unlearn.audit.claims import CLAIMS as AUDITED
from d2unlearn.audit.records import Audit, read_audit
from d2unlearn.gate.score import DEFAULT
from d2unlearn.runtime import read_json
from d2unlearn.schema import Verdict
from tables import spread, table
from tofu_page import KEPT as KEPT_SETS
from tofu_page import Run, Target, gone, read_runs, stayed, told_apart

VARIANTS = {"eua": "full", "deep_eua": "deep_eua"}
"""By method the variant of experiments/tofu_results.py."""
TITLES = {"eua": "EUA as published", "deep_eua": "deep EUA"}
SPLIT = "forget10"
OVERHEAD, LARGE = 1.02, 5e7
"""Time of guarded over plain generation that is allowed, and the parameters from which on."""
REFUSED = 0.01
"""Share of requests that may be decided wrongly."""
NOTHING = "not measured"


@dataclass(frozen=True)
class Check:
    """One number that a claim stands on. found: its verdict in each run; decides: whether the claim falls with it."""

    what: str
    allowed: str
    measured: str
    found: tuple[Verdict, ...]
    decides: bool = True

    @property
    def text(self) -> str:
        counted = Counter(self.found)
        if len(counted) == 1:
            return next(iter(counted))
        return ", ".join(f"{name} in {count} of {len(self.found)}" for name, count in counted.items())


@dataclass(frozen=True)
class Claim:
    """A sentence of the abstract. command: what tests it; checks: by method what it stands on."""

    title: str
    command: str
    checks: Callable[[Path, str], Sequence[Check]]


def claim_blocks(kept: Path) -> dict[str, str]:
    """The summary, and a table for each claim."""
    found = {name: {method: claim.checks(kept, method) for method in VARIANTS} for name, claim in CLAIMS.items()}
    rows = [
        [
            f"[{claim.title}](#{claim.title.lower().replace(' ', '-')})",
            *(f"**{verdict(found[name][each])}**" for each in VARIANTS),
        ]
        for name, claim in CLAIMS.items()
    ]
    blocks = {"claims": table(["claim", *TITLES.values()], rows, "lll")}
    for name, claim in CLAIMS.items():
        blocks[f"claim-{name}"] = f"Tested by {claim.command}.\n\n{checks_table(found[name])}"
    return blocks


def verdict(checks: Sequence[Check]) -> str:
    """What docs/claims.md states as the rule."""
    deciding = [check for check in checks if check.decides]
    if any("does not hold" in check.found and "holds" not in check.found for check in deciding):
        return "refuted"
    if any("holds" not in check.found for check in deciding):
        return "not shown"
    return "holds" if all(set(check.found) == {"holds"} for check in checks) else "holds with limits"


def checks_table(found: Mapping[str, Sequence[Check]]) -> str:
    """A row a check, a column a method."""
    rows = []
    for same in zip(*found.values(), strict=True):
        what = same[0].what if same[0].decides else f"{same[0].what} (does not decide)"
        allowed = next((check.allowed for check in same if check.allowed), "")
        rows.append([what, allowed, *(f"{check.measured}: {check.text}" if check.found else NOTHING for check in same)])
    return table(["", "allowed", *(TITLES[method] for method in found)], rows, "llll")


def held(holds: bool) -> Verdict:
    return "holds" if holds else "does not hold"


# -- what checks are made of ---------------------------------------------------------------------------------------------


def of_target(runs: Sequence[Run], target: Target, decides: bool = True) -> Check:
    """A target of docs/results.md as a check."""
    sign = "≤" if target.at_most else "≥"
    allowed = f"{sign} {spread([target.limit(run) for run in runs], target.percent)}" if runs else ""
    measured = spread([target.measure(run) for run in runs], target.percent) if runs else ""
    return Check(target.text, allowed, measured, tuple(held(target.holds(run)) for run in runs), decides)


def of_audits(kept: Path, method: str, claim: str) -> Check:
    """What the audits of a method's seeds say of one of their claims: of each seed the most thorough."""
    found: list[Verdict] = []
    said = []
    for seed in range(3):
        paths = [kept / "audit" / level / f"{method}-{seed}.json" for level in LEVELS]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            continue
        audit = read_audit(path)
        result = next(each for each in audit.claims if each.name == claim)
        found.append(result.verdict)
        said.append(f"seed {seed}, {audit.level}: {decided(audit, claim, result.attack)}")
    return Check(f"audit: {AUDITED[claim].title.lower()}", "no more than in the control", "; ".join(said), tuple(found))


def decided(audit: Audit, claim: str, name: str) -> str:
    """The attack that decides, with its number on the artifact (on what it is held against)."""
    attack = next(
        (each for each in audit.attacks if (each.name, each.claim) == (name, claim) and each.deciding is not None), None
    )
    return "nothing" if attack is None else f"{attack.title.lower()} {decided_cell(attack)}"


@cache
def tofu(kept: Path, method: str) -> list[Run]:
    return read_runs(kept / "tofu").get(VARIANTS[method], [])


# -- the claims ----------------------------------------------------------------------------------------------------------


def accurate(kept: Path, method: str) -> list[Check]:
    runs = tofu(kept, method)
    pairs = (("forget", "retain", 0.999), ("forget_paraphrased", "retain_paraphrased", 0.99))
    return [*(of_target(runs, told_apart(*pair)) for pair in pairs), *_shifted(kept, method)]


def _shifted(kept: Path, method: str) -> list[Check]:
    """A constant on all logits changes no answer; measured for EUA alone."""
    what, allowed = "decided wrongly once a constant is added to every logit", f"≤ {REFUSED:.0%}"
    if method != "eua":
        return [Check(what, allowed, "", (), decides=False)]
    rates = [
        max(entry["false_refusals"][0], entry["missed"][0])
        for path in sorted((kept / "energy").glob("*.json"))
        for entry in read_json(path)["analysis"]["disturbed"]
        if (entry["index"], entry["disturbance"]) == (f"energy/{DEFAULT}", "constant shift")
    ]
    found = tuple(held(rate <= REFUSED) for rate in rates)
    return [Check(what, allowed, spread(rates, percent=True), found, decides=False)]


def efficient(kept: Path, method: str) -> list[Check]:
    """The same for every method: the gate reads logits that generation makes anyway."""
    cases = read_json(kept / "generation_overhead.json")["cases"]
    large = [case["ratio"] for case in cases if case["parameters"] >= LARGE]
    return [
        Check(
            f"guarded generation over plain, from {LARGE / 1e6:.0f}M parameters on",
            f"≤ {OVERHEAD}",
            spread(large),
            tuple(held(ratio <= OVERHEAD) for ratio in large),
        ),
    ]


def any_words(kept: Path, method: str) -> list[Check]:
    runs = tofu(kept, method)
    return [
        of_audits(kept, method, "other_words"),
        of_target(runs, gone("extraction_strength", "forget_paraphrased")),
    ]


def stays_gone(kept: Path, method: str) -> list[Check]:
    return [of_audits(kept, method, "comes_back"), of_audits(kept, method, "gone")]


def better(kept: Path, method: str) -> list[Check]:
    """Against every rival of the comparison, question by question."""
    tables = kept_comparison(kept / "comparison")[2]
    outcomes = [outcome for each in tables if each.split == SPLIT for outcome in each.outcomes] if method == "eua" else []
    counted = Counter(outcome.result for outcome in outcomes)
    text = f"{counted['win']} won, {counted['tie']} tied, {counted['loss']} lost" if outcomes else ""
    return [
        Check(
            "comparisons with rivals, question by question",
            "more won than lost",
            text,
            (held(counted["win"] > counted["loss"]),) if outcomes else (),
        ),
        Check("none lost", "0", text, (held(not counted["loss"]),) if outcomes else (), decides=False),
    ]


def refusal(kept: Path, method: str) -> list[Check]:
    return [of_audits(kept, method, "refused"), of_audits(kept, method, "nothing_else")]


def preserved(kept: Path, method: str) -> list[Check]:
    runs = tofu(kept, method)
    return [
        of_target(runs, stayed(name, metric)) for name in KEPT_SETS for metric in ("extraction_strength", "answer_probability")
    ]


CLAIMS = {
    "accurate": Claim("The energy index is accurate", "`experiments/tofu_results.py`, `experiments/energy_trial.py`", accurate),
    "efficient": Claim("The energy index is efficient", "`benchmarks/generation_overhead.py`", efficient),
    "any-words": Claim(
        "Deletion is not bound to token sequences", "`experiments/audit_results.py`, `experiments/tofu_results.py`", any_words
    ),
    "stays-gone": Claim("Knowledge does not come back", "`experiments/audit_results.py`", stays_gone),
    "better": Claim("Better than deletion and than refusal", "`d2unlearn compare experiments/comparison.yaml`", better),
    "refusal": Claim("Refusals are safe and coherent", "`experiments/audit_results.py`", refusal),
    "preserved": Claim("Performance is kept", "`experiments/tofu_results.py`", preserved),
}
"""The abstract's sentences, in its order."""
