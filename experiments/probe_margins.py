"""By how much a gate's probe prompts move when the model changes, against what they may move: neutral ones and retained.

    python experiments/probe_margins.py --model ARTIFACT --retain retain.jsonl [--other ANOTHER_ARTIFACT] [--output FILE.json]

For each change the largest difference of energies (nats), and how many times the tolerance that is.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from d2unlearn.data.records import read_examples
from d2unlearn.data.template import Template
from d2unlearn.gate.probe_texts import N_PROBES, probe_prompts
from d2unlearn.gate.probes import make_probes, prompt_energies
from d2unlearn.models import load_model, load_tokenizer


def one_layer_edited(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.01)


def int8(model: PreTrainedModel) -> None:
    """Each linear layer's weights to whole numbers, a scale a row."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(dim=1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)


def rope_theta(model: PreTrainedModel) -> None:
    """Half as large again."""
    size = model.config.hidden_size // model.config.num_attention_heads
    theta = 1.5 * model.config.rope_parameters["rope_theta"]
    model.model.rotary_emb.inv_freq.copy_(1.0 / theta ** (torch.arange(0, size, 2).float() / size))


def norm_eps(model: PreTrainedModel) -> None:
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= 10


def layer_fewer(model: PreTrainedModel) -> None:
    del model.model.layers[-1]
    model.config.num_hidden_layers -= 1


CHANGES: dict[str, Callable[[PreTrainedModel], None]] = {
    "one layer's down projection times 1.01": one_layer_edited,
    "int8": int8,
    "bfloat16": lambda model: model.bfloat16(),
    "rope_theta times 1.5": rope_theta,
    "rms_norm_eps times 10": norm_eps,
    "one layer fewer": layer_fewer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--retain", type=Path, required=True)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model, template = load_model(options.model), Template(load_tokenizer(options.model))
    retained = [template.prompt_ids(row.prompt) for row in read_examples(str(options.retain))[:N_PROBES]]
    sets = {f"neutral texts, seed {seed}": probe_prompts(template, None, seed) for seed in range(3)} | {"retained": retained}
    found: dict[str, dict[str, object]] = {}
    for name, prompts in sets.items():
        probes, tolerance = make_probes(model, prompts, 1.0, None)
        energies = np.array([probe.energy for probe in probes])
        print(f"{name}: {min(map(len, prompts))} to {max(map(len, prompts))} tokens, tolerance {tolerance:.4g} nats")
        found[name] = {"tolerance": tolerance, "tokens": [min(map(len, prompts)), max(map(len, prompts))], "moved": {}}
        changed = {change: copy.deepcopy(model) for change in CHANGES}
        for change, other in changed.items():
            CHANGES[change](other)
        if options.other:
            changed["another artifact of the same base"] = load_model(options.other)
        for change, other in changed.items():
            moved = float(np.abs(prompt_energies(other, prompts, 1.0, None) - energies).max())
            found[name]["moved"][change] = round(moved, 5)  # type: ignore[index]
            print(f"  {change:40} {moved:8.4f} nats, {moved / tolerance:7.1f} times the tolerance")

    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
