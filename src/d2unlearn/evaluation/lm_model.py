"""A guarded model for lm-eval: `d2-guarded` among its model classes, once this module is imported.

    import d2unlearn.evaluation.lm_model
    lm_eval.simple_evaluate("d2-guarded", {"pretrained": "./artifact"}, tasks=["gsm8k"], apply_chat_template=True)

Answers are generated behind the gate, so every generative task scores what a user would be told. Tasks that are scored by
likelihood (WMDP, MMLU) never generate: there the gate has no say, and the number is the raw weights'. Needs the extra `eval`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from d2unlearn.generation.guarded import GuardedModel

NAME = "d2-guarded"


@register_model(NAME)
class GuardedLM(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face model, generating through the gate. `pretrained`: an artifact's folder, or a `GuardedModel`.

    `raw`: the same without its gate. Raises `GateError` for a folder without a gate, unless raw was asked for.
    """

    def __init__(
        self,
        pretrained: str | GuardedModel,
        batch_size: int | str = 1,
        raw: bool = False,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        if not isinstance(pretrained, GuardedModel):
            pretrained = GuardedModel.from_pretrained(Path(pretrained), device=device or "auto", raw=raw)
        self.guarded = pretrained
        self.without_gate = raw
        super().__init__(
            pretrained=pretrained.model,
            tokenizer=pretrained.tokenizer,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
        )

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """[B, T] token ids: the prompts and what follows, a refusal where the gate refuses. Greedy unless asked otherwise."""
        if not options.get("do_sample"):
            options = {name: value for name, value in options.items() if name not in ("temperature", "top_p", "top_k")}
            options["do_sample"] = False
        stops = [text for text in stop if text]
        further: dict[str, Any] = {"stop_strings": stops, "tokenizer": self.guarded.tokenizer} if stops else {}
        sequences: Tensor = self.guarded.generate(
            context,
            options.pop("attention_mask", None),
            raw=self.without_gate,
            max_new_tokens=max_length - context.shape[1],
            pad_token_id=self.tokenizer.pad_token_id,
            **further,
            **options,
        )
        return sequences
