"""Tiny random models of several families, a tokenizer, rows of token ids: made on the spot, nothing is read or trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from d2unlearn.observation import Batch
from d2unlearn.schema import Tokens

VOCABULARY = 120
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {"initializer_range": 0.3}
"""Weights large enough that energies differ by nats, and soft caps bite."""

CHAT_TEMPLATE = (
    "<bos>{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
    "<q>{{ m['content'] }}{% else %}<a>{{ m['content'] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def llama(*, tied: bool = False, seed: int = 0, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES, **(IDS | {"vocab_size": vocabulary}), **WIDE, num_key_value_heads=2, tie_word_embeddings=tied)
    return LlamaForCausalLM(config).eval()


def qwen2(*, seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **IDS, **WIDE, num_key_value_heads=2, tie_word_embeddings=True)).eval()


def gpt2(*, seed: int = 0, dropout: float = 0.1) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **IDS, **WIDE, **drops)).eval()


def gemma2(*, seed: int = 0, softcap: float | None = 3.0) -> Gemma2ForCausalLM:
    torch.manual_seed(seed)
    config = Gemma2Config(**SIZES, **IDS, **WIDE, num_key_value_heads=2, head_dim=8, final_logit_softcapping=softcap)
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config).eval()


def cohere(*, seed: int = 0) -> CohereForCausalLM:
    torch.manual_seed(seed)
    return CohereForCausalLM(CohereConfig(**SIZES, **IDS, **WIDE, num_key_value_heads=2, logit_scale=0.25)).eval()


def granite(*, seed: int = 0) -> GraniteForCausalLM:
    torch.manual_seed(seed)
    config = GraniteConfig(**SIZES, **IDS, **WIDE, num_key_value_heads=2, logits_scaling=4.0, embedding_multiplier=2.0)
    return GraniteForCausalLM(config).eval()


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tied=True),
    "qwen2": qwen2,
    "gpt2": gpt2,
    "gemma2": gemma2,
    "cohere": cohere,
    "granite": granite,
}


def tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A word is a token (with the space before it); a word that is unknown is spelled letter by letter."""
    words = [
        "What",
        "is",
        "the",
        "capital",
        "of",
        "France",
        "Germany",
        "Paris",
        "Berlin",
        "it",
        "he",
        "she",
        "was",
        "born",
        "in",
        "a",
        "city",
        "Question",
        "Answer",
    ]
    special = ["<pad>", "<bos>", "<eos>", "<q>", "<a>"]
    letters = [*map(chr, range(32, 127)), "\n", "é", "\ue000", "\ue001"]
    names = [*special, "<unk>", *letters, *words, *(f" {word}" for word in words)]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    known = "|".join(sorted(words, key=len, reverse=True))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(rf" ?\b(?:{known})\b|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=["<q>", "<a>"],
    )
    made.chat_template = chat_template
    return made


def rows(seed: int, n: int, *, low: int = 3, high: int = 12, vocabulary: int = VOCABULARY) -> list[Tokens]:
    """Random rows whose prompts and answers differ in length, so that a mean of means is not the mean."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(n):
        prompt, answer = (int(length) for length in rng.integers(low, high, size=2))
        ids = rng.integers(4, vocabulary, size=prompt + answer)
        mask = (False,) * prompt + (True,) * answer
        made.append(Tokens(f"{seed}-{index}", tuple(int(i) for i in ids), mask))
    return made


def full_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The model's own logits, [B, T, V], by a plain forward."""
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
