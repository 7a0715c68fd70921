"""What an artifact tells when it is asked otherwise, beside its original and the model that never knew: every judging wording.

    python experiments/wordings_today.py --shared ../shared --artifact runs/tofu/full/seed-0/artifact --name tofu-full-seed-0

asks the forget rows of TOFU and 400 retained test rows (`--forget`, `--retain`, `--original`, `--oracle` name others) in every
wording that judges, raw and, where there is a gate, guarded, and keeps benchmarks/results/wordings/NAME.json: of each wording,
each family and any of them the shares told and refused with their intervals, and which weights, wordings and rows they are of.
Texts are not kept. A run that was stopped goes on where it was: `--work` holds what each model said in each wording, under a
name that tells the weights, so that original and oracle are asked once for all artifacts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from d2unlearn.attacks.answering import attacked_model
from d2unlearn.attacks.wordings import (
    AskingOtherwise,
    Attacked,
    WordingOutcome,
    WordingsSummary,
    ask_in,
    drawn_rows,
    summaries_by,
    wordings_summary,
)
from d2unlearn.audit.judging import judging_hash, judging_wordings
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import weights_hash
from d2unlearn.runtime import fingerprint, progress, read_json, say, write_json
from d2unlearn.schema import Example, Kind, MetricResult
from d2unlearn.serialization import record_from_json, record_to_json
from d2unlearn.wordings.wording import AS_IT_IS, Material
from tofu_results import write_sets

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "wordings"
Rows = dict[Kind, list[Example]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/tofu and models/")
    parser.add_argument("--artifact", type=Path, required=True, help="what is judged; a gate in it is asked too")
    parser.add_argument("--name", required=True, help="of the result's file")
    parser.add_argument("--original", type=Path, help="default: tofu-4m-full")
    parser.add_argument("--oracle", type=Path, help="default: tofu-4m-retain90")
    parser.add_argument("--forget", type=Path, help="default: TOFU's forget10")
    parser.add_argument("--retain", type=Path, help="default: 400 rows of TOFU's retain90, those that tofu_results judges on")
    parser.add_argument("--group-size", type=int, default=20)
    parser.add_argument("--limit", type=int, help="at most so many rows of each set, drawn by seed")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path("runs/wordings"))
    arguments = parser.parse_args()
    budget = AskingOtherwise(arguments.limit, arguments.max_new_tokens, seed=arguments.seed)
    rows = rows_of(arguments)
    material = Material(benign=rows["retain"], forgotten=rows["forget"])
    chosen: Rows = {kind: drawn_rows(of_kind, budget) for kind, of_kind in rows.items()}
    folders = {
        "artifact": arguments.artifact,
        "original": arguments.original or arguments.shared / "models" / "tofu-4m-full",
        "oracle": arguments.oracle or arguments.shared / "models" / "tofu-4m-retain90",
    }
    models = {
        name: model_result(name, folder, chosen, material, budget, arguments.work, arguments.batch_size)
        for name, folder in folders.items()
    }
    result = {
        "judging": judging_hash(),
        "budget": asdict(budget),
        "rows": {kind: [len(of_kind), rows_hash(of_kind)] for kind, of_kind in chosen.items()},
        "models": models,
    }
    write_json(RESULTS / f"{arguments.name}.json", result)


def rows_of(arguments: argparse.Namespace) -> Rows:
    """The rows to ask, before any limit."""
    files = {"forget": arguments.forget, "retain": arguments.retain}
    if None in files.values():
        made = write_sets(arguments.shared / "data" / "tofu", arguments.work / "data", arguments.seed, None)
        files = {kind: file or made[kind] for kind, file in files.items()}
    return {
        "forget": read_examples(files["forget"], group_size=arguments.group_size),
        "retain": read_examples(files["retain"]),
    }


def model_result(
    name: str, folder: Path, rows: Rows, material: Material, budget: AskingOtherwise, work: Path, batch_size: int
) -> dict[str, Any]:
    """Of one model, raw and guarded: the summaries of both sets."""
    guarded = GuardedModel.from_pretrained(folder, raw=True, use_gate=True)
    ways = {"raw": None} if guarded.gate is None else {"raw": None, "guarded": guarded.gate.fingerprint}
    weights = weights_hash(folder)
    result: dict[str, Any] = {"weights": weights, "gate": ways.get("guarded")}
    for way, gate in ways.items():
        attacked = attacked_model(guarded, raw=way == "raw", batch_size=batch_size)
        for kind, of_kind in rows.items():
            about = [weights, gate, judging_hash(), asdict(budget), rows_hash(of_kind), material_hash(material)]
            outcomes = asked_once(f"{name}, {way}, {kind} rows", attacked, of_kind, material, budget, about, work)
            result[f"{way}_{kind}"] = summaries(outcomes, kind, budget.seed)
            any_of = result[f"{way}_{kind}"]["any"]
            say(f"{name}, {way}, {kind} rows: told by any wording {any_of['told']}, refused {any_of['refused']}")
    return result


def asked_once(
    what: str, attacked: Attacked, rows: Sequence[Example], material: Material, budget: AskingOtherwise, about: Any, work: Path
) -> list[WordingOutcome]:
    """The outcomes of every wording, each asked unless its file is there."""
    outcomes: list[WordingOutcome] = []
    wordings = (AS_IT_IS, *judging_wordings())
    for wording in progress(wordings, what, total=len(wordings)):
        file = work / f"{fingerprint([about, wording.name])}.json"
        if not file.is_file():
            started = time.monotonic()
            made = ask_in(attacked, rows, wording, material, budget)
            say(f"{what}, {wording.name}: {time.monotonic() - started:.1f} s for {len(rows)} rows")
            write_json(file, {"outcomes": [record_to_json(replace(outcome, text=""), "outcome") for outcome in made]})
        outcomes += [outcome_of(value, file) for value in read_json(file)["outcomes"]]
    return outcomes


def outcome_of(value: object, file: Path) -> WordingOutcome:
    return record_from_json(WordingOutcome, value, str(file), "outcome", "remove it")


def summaries(outcomes: Sequence[WordingOutcome], kind: Kind, seed: int) -> dict[str, Any]:
    """By wording, by family, and any of the judging wordings; the rows as they are stand among the wordings alone."""
    judged = [outcome for outcome in outcomes if outcome.wording != AS_IT_IS.name]
    return {
        "any": plain(wordings_summary(judged, kind, seed=seed)),
        "families": mapped(plain, summaries_by("family", judged, kind, seed=seed)),
        "wordings": mapped(plain, summaries_by("wording", outcomes, kind, seed=seed)),
    }


def mapped(change: Callable[[Any], Any], values: dict[str, Any]) -> dict[str, Any]:
    return {name: change(value) for name, value in values.items()}


def plain(summary: WordingsSummary) -> dict[str, Any]:
    """Shares as [value, low, high, n]; null where nothing was asked."""
    return {
        "told": interval(summary.told),
        "told_whole": interval(summary.told_whole),
        "refused": interval(summary.refusal),
        "not_asked": dict(summary.not_asked),
    }


def interval(metric: MetricResult) -> list[float | int | None]:
    bounds = (metric.value, metric.low, metric.high)
    return [*(None if math.isnan(bound) else round(bound, 4) for bound in bounds), metric.n]


def rows_hash(rows: Sequence[Example]) -> str:
    return fingerprint([content_hash(row) for row in rows])


def material_hash(material: Material) -> list[str]:
    return [rows_hash(material.benign), rows_hash(material.forgotten)]


if __name__ == "__main__":
    main()
