"""One of several processes of a training run, for test_two_processes.py: started by torchrun, it writes down what it saw.

    torchrun --nproc_per_node 2 two_processes.py FOLDER

FOLDER holds settings.json: the settings of one `run_unlearn`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
from d2unlearn.config import UnlearnSettings
from d2unlearn.training.unlearn import run_unlearn
from training import runs

CUT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
"""With two processes an effective batch of 8."""
PLAIN: dict[str, Any] = {"num_train_epochs": 3, "eval_strategy": "epoch", "logging_steps": 2}


def rows_seen(folder: Path, cut: dict[str, int]) -> dict[str, Any]:
    """The ids of every row that this process draws in three epochs, micro-batch by micro-batch."""
    made = runs.trainer(folder, tiny_models.llama(), **cut)
    loader, seen = made.get_train_dataloader(), []
    for epoch in range(3):
        made._sampler.set_epoch(epoch)
        seen += [{role: batch[role]["input_ids"].tolist() for role in ("forget", "retain")} for batch in loader]
    return {"world_size": made.args.world_size, "rank": made.args.process_index, "seen": seen}


def trained(folder: Path, name: str, **changes: Any) -> list[dict[str, Any]]:
    """Train, keep the weights as NAME.pt from the first process, and return the logs."""
    made = runs.trainer(folder, tiny_models.llama(), **PLAIN, **changes)
    made.train()
    if made.is_world_process_zero():
        torch.save(runs.weights(made.model), folder / f"{name}.pt")
    return made.state.log_history


def resumed(folder: Path) -> None:
    """Go on from the middle of an epoch: a step of 8 rows is one of two, with 4 rows each and a checkpoint after each."""
    place = folder / "steps"
    saving = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1}
    for name, start in (("steps", None), ("resumed", place / "checkpoint-3")):
        made = runs.trainer(place, tiny_models.llama(), **saving, save_total_limit=None)
        made.train(resume_from_checkpoint=None if start is None else str(start))
        if made.is_world_process_zero():
            torch.save(runs.weights(made.model), folder / f"{name}.pt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    report = rows_seen(folder, CUT)
    report["logs"] = trained(folder, "full", **CUT)
    trained(folder, "adapter", **CUT, peft_config=runs.lora(), activation_checkpointing=True)
    trained(folder, "cached", **CUT, reference_cache=str(folder / "reference"))
    resumed(folder)
    run_unlearn(UnlearnSettings(**json.loads((folder / "settings.json").read_text())))
    (folder / f"rank-{report['rank']}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
