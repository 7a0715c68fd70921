"""A tiny random Llama with a word tokenizer, and rows to calibrate on: nothing is trained, energies differ by prompt alone."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.schema import Example, Message

WORDS = [f"w{i}" for i in range(60)]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


def tokenizer(special: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """One token a word; characters by themselves where a word is unknown."""
    names = [
        *SPECIAL.values(),
        "<unk>",
        "\n",
        *map(chr, range(33, 127)),
        *WORDS,
        "Question:",
        "Answer:",
        "refused",
        "sorry",
    ]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(dict.fromkeys(names))}, unk_token="<unk>"))
    brackets = pre_tokenizers.Split(Regex("[<>\n]"), "isolated")  # so that a special token's spelling is several tokens
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), brackets])
    core.decoder = decoders.Sequence([decoders.Replace("w", " w"), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **(SPECIAL if special is None else special))


def model(seed: int = 0, *, eos: int | None = 2, pad: int | None = 0, hidden: int = 32) -> LlamaForCausalLM:
    """Float32, two layers, weights large enough that energies differ by several nats from prompt to prompt."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=176,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    built = LlamaForCausalLM(config).eval()
    built.generation_config.eos_token_id = eos
    built.generation_config.pad_token_id = pad
    return built


def questions(seed: int, n: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(2, 12))) for _ in range(n)]


def examples(seed: int, n: int, *, group_size: int | None = None) -> list[Example]:
    return [
        Example(
            f"row-{i}",
            (Message("user", text),),
            "w1 w2",
            f"rows.jsonl:{i + 1}",
            None if group_size is None else f"author-{i // group_size}",
        )
        for i, text in enumerate(questions(seed, n))
    ]
