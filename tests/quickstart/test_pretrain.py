"""The small model of the made-up world: what is saved, that it is made once, that a failure leaves nothing, that it learns."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from d2unlearn.data.batching import pad_tokens
from d2unlearn.data.template import Template
from d2unlearn.errors import ArtifactError, ConfigError, DataError
from d2unlearn.models import load_model, load_tokenizer, state_hash
from d2unlearn.observation import observe
from d2unlearn.quantities import Correct
from d2unlearn.quickstart import pretrain
from d2unlearn.quickstart.fiction import World, WorldSize, make_world
from d2unlearn.quickstart.pretrain import (
    Recipe,
    Shape,
    fiction_model,
    llama_config,
    taught_model,
    train_small_model,
    train_tokenizer,
    wordings_tokens,
    world_text,
)
from d2unlearn.saving import save_model
from d2unlearn.schema import Tokens

pytestmark = pytest.mark.trains

SHAPE = Shape(vocabulary=400, width=32, layers=1, heads=2, feed_forward=64)
RECIPE = Recipe(epochs=1, batch_size=32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0, size=WorldSize(people=6, forget_people=1, test_share=0.1))


@pytest.fixture(scope="module")
def tokenizer(world: World) -> PreTrainedTokenizerFast:
    return train_tokenizer(world_text(world), SHAPE.vocabulary)


def teach(folder: Path, world: World, recipe: Recipe = RECIPE) -> Path:
    return taught_model(folder, world, recipe, SHAPE, name="tiny", seed=0)


def test_a_saved_folder_loads_and_renders_the_documented_tokens(tmp_path: Path, world: World) -> None:
    folder = teach(tmp_path, world)
    model, loaded = load_model(folder), load_tokenizer(folder)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    assert loaded.apply_chat_template(turns, tokenize=False) == "<bos><q>Who?<a>Me.<eos>"
    assert loaded.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True) == "<bos><q>Who?<a>"
    assert loaded.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<pad>", "<bos>", "<eos>", "<q>", "<a>"]
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == loaded.eos_token_id
    assert model.config.vocab_size == len(loaded)


def test_rows_are_the_chat_template_with_the_answer_and_its_end_marked(
    world: World, tokenizer: PreTrainedTokenizerFast
) -> None:
    fact = world.facts[0]
    rows = wordings_tokens(fact, tokenizer)
    for question, row in zip(fact.wordings, rows, strict=True):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": fact.answer}]
        assert list(row.input_ids) == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        answer = [token for token, marked in zip(row.input_ids, row.answer_mask, strict=True) if marked]
        assert tokenizer.decode(answer) == fact.answer + "<eos>"
    assert Template(tokenizer).question_ids("<eos>").count(tokenizer.eos_token_id) == 0


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "  Zoë's “naïve” 🦊 cost 3.50 €, \n twice!"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_second_call_does_not_train(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = teach(tmp_path, world)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(pretrain, "train_small_model", never)
    assert teach(tmp_path, world) == first
    with pytest.raises(AssertionError, match="trained again"):
        teach(tmp_path, world, Recipe(epochs=2))
    with pytest.raises(AssertionError, match="trained again"):
        teach(tmp_path, make_world(1, size=WorldSize(people=6, forget_people=1, test_share=0.1)))


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("power cut")])
def test_a_run_that_dies_leaves_no_folder(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def die(*_: object, **__: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_step", die)
        with pytest.raises(type(failure)):
            teach(tmp_path, world)
        patch.undo()
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", die)
        with pytest.raises(type(failure)):
            teach(tmp_path, world)
    assert list(tmp_path.iterdir()) == []
    assert (teach(tmp_path, world) / "model.safetensors").is_file()


def test_a_folder_that_another_process_finished_first_is_kept(
    tmp_path: Path, world: World, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = train_small_model([wordings_tokens(world.facts[0], tokenizer)], llama_config(SHAPE, tokenizer), RECIPE, seed=0)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    save_model(model, tokenizer, tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["config.json"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        teach(tmp_path, world)
    assert list(tmp_path.iterdir()) == []


def test_fiction_model_is_named_by_size_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pretrain.RECIPES, "smoke", Recipe(epochs=1, batch_size=128))
    monkeypatch.setattr(pretrain, "SHAPE", SHAPE)
    folder = fiction_model(tmp_path, seed=5, size="smoke")
    assert folder.parent == tmp_path
    assert folder.name.startswith("smoke-5-")
    with pytest.raises(ConfigError, match="default, smoke"):
        fiction_model(tmp_path, seed=5, size="huge")


def row(ids: tuple[int, ...]) -> Tokens:
    return Tokens(str(ids), ids, (False, False, *(True,) * (len(ids) - 2)))


ROWS = [[row((first, second, 10 + first, 20 + second, 2)) for second in (8, 9)] for first in (4, 5, 6, 7)]
SMALL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 40}
CONFIGS: list[PreTrainedConfig] = [
    LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, **SMALL),
    Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, **SMALL
    ),
    GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=16, **SMALL),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_any_family_learns_every_wording(config: PreTrainedConfig) -> None:
    model = train_small_model(ROWS, config, Recipe(epochs=60, batch_size=4, learning_rate=1e-2), seed=0)
    batch = pad_tokens([row for rows in ROWS for row in rows], 0)
    with torch.no_grad():
        correct = observe(model, {"retain": batch}, {"retain": [Correct()]})["retain"][Correct()]
    assert correct.tolist() == [1.0] * 24
    assert not model.training


def test_three_steps_move_every_parameter_by_the_loss_on_answers_alone() -> None:
    untouched = train_small_model(ROWS, CONFIGS[0], Recipe(epochs=3, batch_size=4, learning_rate=0.0), seed=0)
    moved = train_small_model(ROWS, CONFIGS[0], Recipe(epochs=3, batch_size=4, weight_decay=0.0), seed=0)
    for (name, before), after in zip(untouched.named_parameters(), moved.parameters(), strict=True):
        assert not torch.equal(before, after), name
    never_read = 30
    assert torch.equal(untouched.get_input_embeddings().weight[never_read], moved.get_input_embeddings().weight[never_read])


def test_weights_depend_on_the_seed_and_not_on_the_global_generator() -> None:
    hashes = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(global_seed)
        expected = torch.get_rng_state()
        hashes.append(state_hash(train_small_model(ROWS, CONFIGS[0], RECIPE, seed=seed)))
        assert torch.equal(torch.get_rng_state(), expected)
    assert hashes[0] == hashes[1]
    assert hashes[1] != hashes[2]


def test_the_number_of_threads_is_as_asked_and_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(pretrain, "_step", lambda *_: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(torch.optim.lr_scheduler.OneCycleLR, "step", lambda *_: None)
    torch.set_num_threads(2)
    train_small_model(ROWS, CONFIGS[0], RECIPE, seed=0, threads=1)
    train_small_model(ROWS, CONFIGS[0], RECIPE, seed=0)
    assert seen == [1, 2]
    assert torch.get_num_threads() == 2


def test_nothing_to_teach_is_refused() -> None:
    for rows in ([], [[]]):
        with pytest.raises(DataError, match="nothing to teach"):
            train_small_model(rows, CONFIGS[0], RECIPE, seed=0)
