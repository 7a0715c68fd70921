"""What the benchmarks share: random models, their tokenizer, where something was measured, ratios, and peak memory."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as models_of_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.schema import Tokens


def random_llama(
    *, vocabulary: int, width: int, intermediate: int, layers: int, heads: int, **options: Any
) -> LlamaForCausalLM:
    """The same weights at every call. `options`: further fields of `LlamaConfig`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **options,
    )
    return LlamaForCausalLM(config).eval()


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word for every id: `w4`, `w5`, ... behind four special tokens."""
    names = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(4, vocabulary))]
    core = Tokenizer(models_of_tokenizers.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def random_row(name: str, length: int, vocabulary: int, rng: np.random.Generator) -> Tokens:
    """Random tokens whose second half is the answer."""
    ids = tuple(int(i) for i in rng.integers(4, vocabulary, size=length))
    return Tokens(name, ids, tuple(position >= length // 2 for position in range(length)))


def measured_on() -> dict[str, str]:
    """The machine and the versions that times depend on."""
    return {
        "hardware": f"{os.cpu_count()}-core {platform.machine()} CPU, float32",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def spread(ratios: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    return {"median": round(float(middle), 3), "p10": round(float(low), 3), "p90": round(float(high), 3)}


# -- memory -------------------------------------------------------------------------------------------------------------


def in_fresh_process(script: str, *options: object) -> Any:
    """What the script prints, as JSON."""
    command = [sys.executable, script, *map(str, options)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mib(work: Callable[[], object]) -> float:
    """The highest resident size while `work` runs, MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return resident_mib("VmHWM")


def resident_mib(field: str = "VmRSS") -> float:
    """A size from /proc/self/status, MiB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
