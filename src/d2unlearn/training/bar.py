"""What a terminal shows while a model trains."""

from __future__ import annotations

from typing import Any

from transformers.trainer_callback import ProgressCallback


class TrainingBar(ProgressCallback):
    """transformers' bar over the optimizer steps, with the loss beside it in place of a line for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        bar: Any = self.training_bar
        if state.is_world_process_zero and bar is not None and "loss" in (logs or {}):
            bar.set_postfix(loss=f"{logs['loss']:.4g}", refresh=False)
