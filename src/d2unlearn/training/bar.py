"""What a terminal shows while a model trains: one bar, and lines that stand above it."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]
from transformers.trainer_callback import ProgressCallback


class TrainingBar(ProgressCallback):
    """transformers' bar over the optimizer steps, with the loss beside it in place of a line for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        bar: Any = self.training_bar
        if state.is_world_process_zero and bar is not None and "loss" in (logs or {}):
            bar.set_postfix(loss=f"{logs['loss']:.4g}", refresh=False)


def tell(text: str) -> None:
    """One line on the standard error, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)
