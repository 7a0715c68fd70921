"""Checkpoints of which one is whole at any moment, whenever a run is killed; what resumes a run is in the last one alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils.constants import OPTIMIZER_NAME as SHARDED_OPTIMIZER_NAME
from transformers import TrainerCallback
from transformers.trainer import OPTIMIZER_NAME
from transformers.trainer_utils import rotate_checkpoints

from d2unlearn.runtime import first_rank, remove

COMPLETE = "checkpoint_complete"
_SHARDED_OPTIMIZER = f"{SHARDED_OPTIMIZER_NAME}_0"
"""Where accelerate keeps FSDP's."""


class CompleteCheckpoints(TrainerCallback):
    """Marks each checkpoint as complete once it is written, and only then deletes older ones, down to `limit`.

    With a limit of two these are the best and the last, one where they are the same. An older one that stays loses the
    optimizer's state.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if args.should_save:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
            last, best = f"checkpoint-{state.global_step}", Path(str(state.best_model_checkpoint)).name
            limit = 1 if self._limit == 2 and best == last else self._limit
            rotate_checkpoints(args.output_dir, limit, state.best_model_checkpoint, use_mtime=True)
            for path in Path(args.output_dir).glob("checkpoint-*"):
                if path.name != last and self._limit is not None:
                    remove(path / OPTIMIZER_NAME)
                    remove(path / _SHARDED_OPTIMIZER)


def last_complete_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint whose writing was finished; half-written ones are removed. None when there is none.

    Of several processes the first removes, and none of them looks at what is removed.
    """
    complete = []
    for path in Path(folder).glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            complete.append(path)
        elif first_rank():
            remove(path)
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
