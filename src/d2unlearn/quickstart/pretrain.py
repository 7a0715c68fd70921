"""A small causal model taught from scratch: the model of the made-up world, made on first use and kept.

Every fact is shown once an epoch, in one of its trained wordings drawn at random, so that the fact is learnt and not the
sentence; the loss is on the answer's tokens and its end. Any architecture of transformers can be taught this way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from d2unlearn.data.batching import pad_tokens
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.observation import Batch, observe
from d2unlearn.quantities import Nll
from d2unlearn.quickstart.fiction import Fact, World, make_world
from d2unlearn.runtime import drawing_from, fingerprint, progress
from d2unlearn.saving import save_model
from d2unlearn.schema import Example, Message, Tokens

_MODEL_VERSION = 1
"""Raised whenever a model made before should be made again though recipe and world are the same."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<q>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<a>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ message['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
MAX_LENGTH = 512
THREADS = 1
"""CPU threads that teach the world's model. Its steps are too small to share: on a busy machine two threads wait for each other
many times longer than they compute, and with one the weights do not depend on the number of cores."""
BUCKET = 16
"""Batches drawn together and sorted by length among themselves, so that little is spent on padding."""


@dataclass(frozen=True)
class Recipe:
    """How a small model is taught. `learning_rate` is the peak of a one-cycle schedule."""

    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup: float = 0.1
    weight_decay: float = 0.05
    max_gradient_norm: float = 1.0


@dataclass(frozen=True)
class Shape:
    """The size of a small Llama with tied embeddings, and of its tokenizer's vocabulary."""

    vocabulary: int = 2048
    width: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384


RECIPES = {"default": Recipe(), "smoke": Recipe(epochs=24, batch_size=16)}
SHAPE = Shape()


def fiction_model(folder: str | Path, *, seed: int = 0, size: str = "default") -> Path:
    """The folder, inside `folder`, of a model that knows the whole world of this seed and size; taught on the first call.

    A normal Hugging Face folder, moved into place when it is whole: a run that dies leaves nothing under the name returned.
    Later calls with the same seed, size, world and recipe return at once. Raises `ConfigError` for an unknown size and
    `ArtifactError` when the folder cannot be written.
    """
    world = make_world(seed, size=size)
    return taught_model(folder, world, RECIPES[size], SHAPE, name=f"{size}-{seed}", seed=seed)


def taught_model(folder: str | Path, world: World, recipe: Recipe, shape: Shape, *, name: str, seed: int) -> Path:
    """The folder of a small Llama taught `world` by `recipe`; named `name` and a key of all that decides the weights."""
    key = fingerprint([_MODEL_VERSION, CHAT_TEMPLATE, world.fingerprint, asdict(recipe), asdict(shape), seed])
    target = Path(folder) / f"{name}-{key[:12]}"
    if target.is_dir():
        return target
    tokenizer = train_tokenizer(world_text(world), shape.vocabulary)
    rows = [wordings_tokens(fact, tokenizer) for fact in world.facts]
    model = train_small_model(rows, llama_config(shape, tokenizer), recipe, seed=seed, threads=THREADS)
    save_model(model, tokenizer, target)
    return target


def train_small_model(
    rows: Sequence[Sequence[Tokens]], config: PreTrainedConfig, recipe: Recipe, *, seed: int, threads: int | None = None
) -> PreTrainedModel:
    """A causal model of `config`, taught from random weights; in evaluation mode, float32.

    `rows` holds for each fact its renderings; one of them, drawn at random, is seen in an epoch. The loss of a step is the
    mean negative log-likelihood over the batch's answer tokens. Weights depend on the arguments (and on the machine's
    rounding), not on the state of torch's global generator, which is left as it was. `threads` is how many CPU threads compute,
    None for torch's present number. Raises `DataError` without rows.
    """
    if not rows or not all(rows):
        raise DataError("there is nothing to teach: every fact needs at least one rendered row")
    with drawing_from(seed), _cpu_threads(threads):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        model.train()
        generator = torch.Generator().manual_seed(seed)
        batches = list(_batches(rows, recipe, generator))
        optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), betas=(0.9, 0.98), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=len(batches), pct_start=recipe.warmup, cycle_momentum=False
        )
        for batch in progress(batches, "teaching a small model", total=len(batches)):
            _step(model, batch, optimizer, recipe)
            schedule.step()
    model.eval()  # type: ignore[no-untyped-call]
    return model


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of these texts, with the tokens and chat template `<bos><q>{question}<a>{answer}<eos>`.

    It has at most `vocabulary` tokens, and never fewer than the 256 bytes and its five special tokens.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<bos>", "<eos>", "<q>", "<a>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=["<q>", "<a>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def world_text(world: World) -> list[str]:
    """All that is trained on, as plain text: the trained wordings and the answers, and nothing held out."""
    return [text for fact in world.facts for text in (*fact.wordings, fact.answer)]


def wordings_tokens(fact: Fact, tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """The fact's answer behind each of its trained wordings, rendered with the chat template."""
    template = Template(tokenizer)
    return [
        template.tokens(Example(f"{fact.kind}:{question}", (Message("user", question),), fact.answer, "world"))
        for question in fact.wordings
    ]


def llama_config(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The configuration of a small Llama for this tokenizer."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(rows: Sequence[Sequence[Tokens]], recipe: Recipe, generator: torch.Generator) -> Iterator[Batch]:
    """All batches of a training run, in order."""
    for _ in range(recipe.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        drawn = [rows[i][int(torch.randint(len(rows[i]), (), generator=generator))] for i in order]
        buckets = range(0, len(drawn), recipe.batch_size * BUCKET)
        cut = [batch for start in buckets for batch in _bucket(drawn[start:][: recipe.batch_size * BUCKET], recipe)]
        for index in torch.randperm(len(cut), generator=generator).tolist():
            yield pad_tokens(cut[index], 0)


def _bucket(drawn: list[Tokens], recipe: Recipe) -> list[list[Tokens]]:
    by_length = sorted(drawn, key=lambda row: len(row.input_ids))
    return [by_length[start : start + recipe.batch_size] for start in range(0, len(by_length), recipe.batch_size)]


def _parameter_groups(model: PreTrainedModel, recipe: Recipe) -> list[dict[str, object]]:
    """Matrices are decayed, vectors (norms, biases) are not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def _step(model: PreTrainedModel, batch: Batch, optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
    nll = Nll()
    loss = observe(model, {"retain": batch}, {"retain": [nll]})["retain"][nll].mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
