"""A made-up artifact through vLLM itself, held against `GuardedModel`: not part of the tests, for vLLM pins other versions.

    python -m venv vllm-env && . vllm-env/bin/activate        (how to fill it: docs/serving.md)
    python experiments/vllm_end_to_end.py

Prompts are fed in pieces of 16 tokens, so that the processor is asked in their middle. Prints for each prompt what both said
and ends with status 1 when a decision or an answer differs. With a small random Llama; `--model DIR` takes an artifact.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as models_of_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn import EnergyGate, GuardedModel
from d2unlearn.data.template import Template
from d2unlearn.generation.vllm_probes import TOKENS, probe_requests
from d2unlearn.schema import Example, Message

PIECE = 16
WORDS = [f"w{i}" for i in range(400)]
LENGTH = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an artifact with a gate; without, one is made")
    parser.add_argument("--prompts", type=Path, help="a JSON list of questions for it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.model or made(Path(place) / "artifact")
        prompts = json.loads(options.prompts.read_text()) if options.prompts else questions(5, 24)
        return compare(folder, prompts)


def made(folder: Path) -> Path:
    """A random model with a gate that refuses about half of what it is asked."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    names = ["<pad>", "<bos>", "<eos>", "<unk>", "\n", "Question:", "Answer:", *WORDS]
    core = Tokenizer(models_of_tokenizers.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.save_pretrained(folder)
    rows = [Example(str(i), (Message("user", text),), "w1", str(i)) for i, text in enumerate(questions(1, 60))]
    texts = ["w7 w8 w9"]
    gate = EnergyGate.calibrate(model, tokenizer, rows, max_false_refusal=0.5, max_new_tokens=LENGTH, refusal_texts=texts)
    replace(gate, weights_hash=None).save(folder)
    return folder


def questions(seed: int, n: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(2, 60))) for _ in range(n)]


def compare(folder: Path, prompts: list[str]) -> int:
    from vllm import LLM, SamplingParams
    from vllm.exceptions import VLLMValidationError

    guarded = GuardedModel.from_pretrained(folder, device="cpu")
    assert guarded.gate is not None
    decisions = [guarded.decide(prompt) for prompt in prompts]
    raw = guarded.answer(prompts, max_new_tokens=LENGTH, raw=True)
    engine = LLM(
        str(folder),
        dtype=guarded.gate.dtype,
        max_model_len=256,
        max_num_batched_tokens=PIECE,
        max_num_seqs=4,
        enable_chunked_prefill=True,
        logits_processors=["d2unlearn.generation.vllm_plugin:EnergyGateLogitsProcessor"],
        enforce_eager=True,
    )
    ids = [Template(guarded.tokenizer).question_ids(prompt) for prompt in prompts]
    settings = SamplingParams(temperature=0.0, max_tokens=LENGTH)
    probes = [{"prompt_token_ids": each} for each in probe_requests(folder)]
    engine.generate(probes, SamplingParams(temperature=0.0, max_tokens=TOKENS))
    found = engine.generate([{"prompt_token_ids": each} for each in ids], settings)
    wrong = sum(
        not agrees(guarded, prompt_ids, decision.refused, decision.n_tokens, plain.text, output.outputs[0])
        for prompt_ids, decision, plain, output in zip(ids, decisions, raw, found, strict=True)
    )
    refused = sum(decision.refused for decision in decisions)
    print(f"{len(prompts)} prompts, {refused} refused, {wrong} that differ")
    for name, changed in (("logit_bias", {"logit_bias": {5: 9.0}}), ("logprobs", {"logprobs": 5})):
        try:
            engine.generate([{"prompt_token_ids": ids[0]}], SamplingParams(max_tokens=2, **changed))
        except VLLMValidationError as error:
            print(f"{name}: turned down ({error})")
        else:
            print(f"{name}: NOT turned down")
            wrong += 1
    return int(wrong > 0)


def agrees(guarded: GuardedModel, prompt_ids: list[int], refused: bool, n_tokens: int, plain: str, output: object) -> bool:
    """Whether vLLM's tokens are the plain answer; or, where the gate refuses, that up to there and then the refusal."""
    assert guarded.gate is not None
    tokens = list(output.token_ids)  # type: ignore[attr-defined]
    words = guarded.template.text_ids(guarded.gate.refusal(prompt_ids))
    if refused:
        line_break = guarded.template.text_ids("\n") if n_tokens else []
        wanted = [*line_break, *words, 2][: LENGTH - n_tokens]
        return tokens[n_tokens : n_tokens + len(wanted)] == wanted
    return str(guarded.tokenizer.decode(tokens, skip_special_tokens=True)).strip() == plain


if __name__ == "__main__":
    sys.exit(main())
