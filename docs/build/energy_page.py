"""The tables and findings of docs/energy.md, from the kept trials alone: no number there is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from d2unlearn.analysis.page import drawn_detectors, lowest_rate
from d2unlearn.analysis.page_panels import general_sets
from d2unlearn.analysis.page_tables import signed, size_text
from d2unlearn.analysis.records import Analysis, Placement
from d2unlearn.analysis.significance import Significance, pair_of, refusal_significance, refusals_of, significance, trial_of
from d2unlearn.report.notation import fixed, percent, readable
from energy_findings import findings, run, verdict
from energy_seeds import ROLES, agreed, area, cost_of, disturbed, named, pairs_of, points, range_of, read_trials, text_of, wrong
from tables import table


def energy_blocks(results: Path) -> dict[str, str]:
    """What stands between the marks of docs/energy.md."""
    kept = read_trials(results)
    trials = [each.analysis for each in kept]
    return {
        "energy-run": run(kept),
        "energy-findings": "\n".join(f"- {line}" for line in findings(trials)),
        "energy-verdict": verdict(trials),
        "energy-telling": telling_table(trials),
        "energy-deciding": deciding_table(trials, "raised"),
        "energy-conformal": deciding_table(trials, "conformal"),
        "energy-models": model_table(trials),
        "energy-layers": layer_table(trials),
        "energy-sizes": size_table(trials),
        "energy-disturbances": disturbance_table(trials),
        "energy-costs": cost_table(trials),
    }


def telling_table(trials: Sequence[Analysis]) -> str:
    """Every statistic of every index in the second wording, and AUROC in the first."""
    first, second = pairs_of(trials)[0], pairs_of(trials)[-1]
    others = {
        "aupr": ("AUPR ↑", fixed),
        "fpr_at_95_tpr": ("FPR at 95% TPR ↓", percent),
        "overlap": ("overlap ↓", fixed),
        "ks_distance": ("KS ↑", fixed),
    }
    head = [
        "index",
        f"AUROC ↑, {_title(first)}",
        f"AUROC ↑, {_title(second)}",
        "its difference to the gate's score",
        *(f"{label}, {readable(second[0])}" for label, _ in others.values()),
    ]
    rows = []
    for name in named(trials):
        found = [pair_of(trial_of(each), *second)[name] for each in trials]
        stands = agreed(significance(each.ahead) for each in found)
        cells = [text_of(area(trials, name, first)), text_of(area(trials, name, second))]
        cells.append(_bold(text_of((each.ahead for each in found), signed), stands))
        cells += [text_of((each.statistics[key] for each in found), write) for key, (_, write) in others.items()]
        rows.append([f"`{name}`", *cells])
    return table(head, rows, "l" + "r" * 7)


def deciding_table(trials: Sequence[Analysis], placement: Placement) -> str:
    """What every index decides wrongly of every set at the lowest rate."""
    rate, sets = lowest_rate(trials[0]), trials[0].sets
    head = ["index", *(f"{'missed' if each.kind == 'forget' else 'refused'}: {readable(each.name)} ↓" for each in sets)]
    rows = []
    for name in named(trials):
        cells = []
        for each in sets:
            more = (refusals_of(trial_of(trial), rate, placement)[name].more[each.name] for trial in trials)
            stands = agreed(refusal_significance(refused, each.kind) for refused in more)
            text = text_of(wrong(trials, name, each.name, rate, placement), percent)
            cells.append(_bold(text, stands))
        rows.append([f"`{name}`", *cells])
    return table(head, rows, "l" + "r" * len(sets))


def model_table(trials: Sequence[Analysis]) -> str:
    """AUROC on the models that were not unlearned, and against general knowledge."""
    pairs = pairs_of(trials)
    general = general_sets(trials[0])
    columns = [(role, pair) for role in ROLES if role != "model" for pair in pairs]
    columns += [(role, (pairs[0][0], name)) for role in ("model", "oracle") for name in general]
    head = ["index", *(f"{ROLES[role]}: {_title(pair)}" for role, pair in columns)]
    rows = [[f"`{name}`", *(text_of(area(trials, name, pair, role)) for role, pair in columns)] for name in named(trials)]
    return table(head, rows, "l" + "r" * len(columns))


def layer_table(trials: Sequence[Analysis]) -> str:
    """AUROC by layer, where the prompt ends and over the first tokens, on every model."""
    columns = [(role, place) for role in ROLES for place in range(len(trial_of(trials[0], role).layers))]
    heads = []
    for role, place in columns:
        positions = trial_of(trials[0], role).layers[place].positions
        heads.append(f"{ROLES[role]}, {'prompt’s end' if positions == 1 else f'first {positions} tokens'}")
    n_layers = len(trial_of(trials[0]).layers[0].auroc)
    rows = [
        [
            "embeddings" if layer == 0 else str(layer),
            *(text_of(trial_of(each, role).layers[place].auroc[layer] for each in trials) for role, place in columns),
        ]
        for layer in range(n_layers)
    ]
    return table(["after layer", *heads], rows, "l" + "r" * len(columns))


def size_table(trials: Sequence[Analysis]) -> str:
    """Refused wrongly and missed, by number of calibration questions, for the indices that pictures show."""
    rate = lowest_rate(trials[0])
    sizes = sorted({each.n for each in trials[0].curves})
    rows = []
    for index in drawn_detectors(trials[0]):
        cells = []
        for n in sizes:
            found = points(trials, index.name, n, rate)
            both = f"{percent(mean(p.false_refusals.value for p in found))} / {percent(mean(p.missed.value for p in found))}"
            cells.append(both if all(p.guaranteed for p in found) else f"({both})")
        rows.append([f"`{index.name}`", *cells])
    return table(["refused wrongly / missed", *map(str, sizes)], rows, "l" + "r" * len(sizes))


def disturbance_table(trials: Sequence[Analysis]) -> str:
    """Refused wrongly and missed of every index under every disturbance, with the threshold as it was."""
    names = list(trials[0].disturbances)
    rows = []
    for index in named(trials):
        cells = []
        for name in names:
            found = disturbed(trials, name, index)
            cells.append(
                f"{percent(mean(e.false_refusals.value for e in found))} / {percent(mean(e.missed.value for e in found))}"
            )
        rows.append([f"`{index}`", *cells])
    said = "; ".join(f"{name}: {what}" for name, what in trials[0].disturbances.items())
    return table(["refused wrongly / missed", *names], rows, "l" + "r" * len(names)) + f"\n{said[0].upper()}{said[1:]}.\n"


def cost_table(trials: Sequence[Analysis]) -> str:
    """Time and memory of every index."""
    rows = []
    for name in named(trials):
        found = [cost_of(each, name) for each in trials]
        rows.append(
            [
                f"`{name}`",
                range_of([each.microseconds for each in found], ""),
                range_of([100 * each.share for each in found], "%"),
                f"{mean(each.positions for each in found):.3g}",
                size_text(found[0].working_bytes),
                size_text(found[0].kept_bytes),
            ]
        )
    generation = range_of([each.generation_ms for each in trials], " ms")
    head = ["index", "microseconds", "of generation", "tokens read", "held a moment", "kept with the gate"]
    return table(head, rows, "lrrrrr") + f"\nGenerating an answer takes {generation} of processor time a request, in batches.\n"


def _title(pair: tuple[str, str]) -> str:
    return f"{readable(pair[0])} / {readable(pair[1])}"


def _bold(text: str, stands: Significance) -> str:
    return {"better": f"**{text}**", "worse": f"*{text}*", "": text}[stands]
