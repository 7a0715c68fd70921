"""One of several processes that train a few methods, for test_two_processes.py: started by torchrun, it writes what came out.

torchrun --nproc_per_node 2 two_processes.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
from d2unlearn import UnlearnTrainer
from d2unlearn.methods import METHODS
from methods.tiny_run import FORGET, RETAIN, trainer, weights

RUNS: dict[str, dict[str, Any]] = {
    "pdu": {"dual_warmup_epochs": 1, "alpha": 0.5},
    "rmu": {"module_regex": r"model\.layers\.1", "trainable_params_regex": [r"model\.layers\.1\..*"]},
    "undial": {},
    "altpo": {"alternate_samples": 2},
}


def run(folder: Path, key: str, rows: int) -> UnlearnTrainer:
    """Three epochs of one step with four forget rows, `rows` of them in each process. AltPO's rows are the model's own."""
    method = METHODS[key](**RUNS[key])
    changes = {"per_device_train_batch_size": rows, "num_train_epochs": 3, "reference_cache": str(folder / f"cache-{key}")}
    args = trainer(folder, tiny_models.llama(), METHODS["eua"](), **changes).args
    made = UnlearnTrainer(tiny_models.llama(), args, method, FORGET, RETAIN)
    made.train()
    return made


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for key in RUNS:
        made = run(folder, key, 2)
        report[key] = {"alpha": made.method.alpha, "world_size": made.args.world_size}
        torch.save(weights(made.model), folder / f"{key}-{made.args.process_index}.pt")
    (folder / f"rank-{made.args.process_index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
