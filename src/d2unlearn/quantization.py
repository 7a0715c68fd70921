"""Models whose linear layers are held in 4 or 8 bits by bitsandbytes, and the adapters that were trained on them.

4 bits are NF4 with double quantisation (QLoRA), 8 bits LLM.int8(). Embedding, norms and LM head stay as they are. An adapter's
folder says in its `config.json` how its base was quantised, so that it is loaded as it was trained: with the same energies.

Source: Dettmers et al., arXiv 2305.14314 and 2208.07339; transformers.BitsAndBytesConfig, whose defaults are taken otherwise.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2unlearn.errors import ConfigError

LIBRARY = "bitsandbytes"
INSTALL = "pip install 'd2unlearn[quantised]'"


def quantization_config(kind: str, dtype: torch.dtype) -> Any:
    """What transformers is told. kind: `4bit` or `8bit`; dtype: of what is computed with the weights.

    Raises `ConfigError` where the library is missing.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise ConfigError([f"quantization {kind} needs {LIBRARY}, which is not installed: {INSTALL}"])
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def check_quantization(kind: str | None, *, lora: bool, merge: bool) -> None:
    """Raises `ConfigError` for a quantised base that would itself be trained, and for a merge with nothing quantised."""
    if kind is not None and not lora:
        raise ConfigError([f"quantization {kind} needs --lora: quantised weights themselves cannot be trained"])
    if merge and kind is None:
        raise ConfigError(["merge is for a quantised base: a plain one's adapter is merged anyway"])


def is_quantised(model: nn.Module) -> bool:
    """Whether some of its weights are held in fewer bits; such a model stays on the device that it was loaded to."""
    return getattr(model, "quantization_method", None) is not None


def held_alike(model: nn.Module) -> None:
    """Keep 4-bit weights as they are on a CPU too, where bitsandbytes would pack them anew in evaluation mode.

    It then rounds the blocks' scales to bfloat16, so that evaluation and training would see other weights, and fails for layers
    whose widths are no multiples of a block.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def base_is_held(folder: Path) -> str | None:
    """How the base of an adapter's folder was quantised, `4bit` or `8bit`; None where it was not."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None
    if not isinstance(found, dict) or found.get("quant_method") != LIBRARY:
        return None
    return "4bit" if found.get("load_in_4bit") else "8bit"
