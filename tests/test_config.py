"""Settings from a file and the command line: what wins, what is refused, and that every mistake is told at once."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest

from d2unlearn import config
from d2unlearn.config import (
    CalibrateSettings,
    EvaluateSettings,
    GenerateSettings,
    QuickstartSettings,
    UnlearnSettings,
    identity,
    load_settings,
    system_message,
)
from d2unlearn.errors import ConfigError
from d2unlearn.fields import Flag, Limit, bare, flag_of, marker_of, typed

NEEDED = {"model": "m", "forget": "f", "retain": "r", "output": "o"}


def mistakes(kind: type[Any], file: Path | None = None, **given: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(kind, file, given)
    assert str(caught.value) == "; ".join(caught.value.mistakes)
    return caught.value.mistakes


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_not_given_is_the_default() -> None:
    assert load_settings(UnlearnSettings, None, NEEDED) == UnlearnSettings(**NEEDED)
    assert load_settings(QuickstartSettings, None, {"size": None}) == QuickstartSettings(
        output=None, size="default", real=False, topic="France", seed=0
    )


def test_the_published_recipe_is_the_default() -> None:
    settings = UnlearnSettings(**NEEDED)
    assert (settings.method, settings.learning_rate, settings.epochs) == ("eua", "auto", "auto")
    assert (CalibrateSettings("m", "r").max_false_refusal, CalibrateSettings("m", "r").confidence) == (0.01, None)


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = yaml_file(
        tmp_path,
        "model: m\nforget: f\nretain: r\noutput: o\n"
        "epochs: 3\nbatch-size: 2\nlora: true\nmethod_parameters: {ratio: 0.2, alpha: 2}\n",
    )
    settings = load_settings(
        UnlearnSettings, file, {"epochs": 5.0, "lora": None, "method_parameters": {"alpha": 3}, "output": "p"}
    )
    expected = {"output": "p", "epochs": 5.0, "batch_size": 2, "lora": True, "method_parameters": {"ratio": 0.2, "alpha": 3}}
    assert asdict(settings) == asdict(UnlearnSettings(**{**NEEDED, **expected}))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: auto", "learning_rate", "auto"),
        ("learning_rate: '3e-5'", "learning_rate", 3e-5),
        ("epochs: 2", "epochs", 2.0),
        ("batch_size: 4.0", "batch_size", 4),
        ("seed: 0", "seed", 0),
        ("group_size: null", "group_size", None),
        ("lora: false", "lora", False),
    ],
)
def test_values_arrive_as_the_field_s_type(tmp_path: Path, text: str, key: str, value: object) -> None:
    found = getattr(load_settings(UnlearnSettings, yaml_file(tmp_path, text), NEEDED), key)
    assert (found, type(found)) == (value, type(value))


def test_lists_and_mappings_arrive_as_such(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "model: m\nretain: r\nrefusal: [No., Sorry.]\n")
    assert load_settings(CalibrateSettings, file, {}).refusal == ["No.", "Sorry."]
    given = {**NEEDED, "also_forget": {"other": "x.jsonl"}}
    assert load_settings(EvaluateSettings, None, given).also_forget == {"other": "x.jsonl"}


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    assert mistakes(CalibrateSettings, model="m", retain="r", max_false_refusals=0.1) == [
        "unknown key max_false_refusals; did you mean max_false_refusal?"
    ]
    (far,) = mistakes(QuickstartSettings, zzz=1)
    assert far == "unknown key zzz; known: output, size, real, topic, seed, force"


def test_all_mistakes_are_told_together(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "modle: m\nretain: r\nepochs: many\nlora_rank: many\nbatch_size: 0\nlora: 1\n")
    assert mistakes(UnlearnSettings, file, seed=-1) == [
        "unknown key modle; did you mean model?",
        "epochs should be a positive number or auto, not many",
        "lora_rank should be a whole number, not 'many'",
        "batch_size should be at least 1, not 0",
        "lora should be true or false, not 1",
        "seed should be between 0 and 4294967295, not -1",
        "model is missing (--model, or `model:` in the file)",
        "forget is missing (--forget, or `forget:` in the file)",
        "output is missing (--output, or `output:` in the file)",
    ]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model", 3, "model should be text, not 3"),
        ("model", None, "model should be text, not None"),
        ("model", "a\udcff", "model should be text, not 'a\\udcff'"),
        ("batch_size", 2.5, "batch_size should be a whole number, not 2.5"),
        ("batch_size", True, "batch_size should be a whole number, not True"),
        ("batch_size", "inf", "batch_size should be a whole number, not 'inf'"),
        ("epochs", float("nan"), "epochs should be a positive number or auto, not nan"),
        ("epochs", float("inf"), "epochs should be a positive number or auto, not inf"),
        ("learning_rate", "fast", "learning_rate should be a positive number or auto, not fast"),
        ("learning_rate", 0, "learning_rate should be a positive number or auto, not 0"),
        ("learning_rate", -1e-5, "learning_rate should be a positive number or auto, not -1e-05"),
        ("group_size", "x", "group_size should be a whole number or nothing, not 'x'"),
        ("max_length", 1, "max_length should be at least 2, not 1"),
        ("method_parameters", [1], "method_parameters should be mapping, not [1]"),
    ],
)
def test_a_value_that_is_wrong_is_named_with_what_was_expected(tmp_path: Path, key: str, value: object, says: str) -> None:
    import yaml

    file = yaml_file(tmp_path, yaml.safe_dump({**NEEDED, key: value}))
    assert mistakes(UnlearnSettings, file) == [says]


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan"), "much"])
def test_a_share_lies_between_none_and_all(rate: object) -> None:
    (said,) = mistakes(CalibrateSettings, model="m", retain="r", max_false_refusal=rate)
    expected = "a number" if rate == "much" else "above 0 and below 1"
    assert said.startswith(f"max_false_refusal should be {expected}, not ")


def test_lists_and_mappings_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    assert mistakes(CalibrateSettings, model="m", retain="r", refusal=["No.", 3]) == [
        "refusal should be list of text, not ['No.', 3]"
    ]
    assert mistakes(EvaluateSettings, **NEEDED, also_retain={"x": 1}) == ["also_retain should be mapping of text, not {'x': 1}"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"- a\n", "should hold `key: value` lines, not a list"),
        (b"just words\n", "should hold `key: value` lines, not a str"),
        (b"a: [\n", "is not valid YAML: while parsing"),
        (b"\xff\xfe\x00", "cannot be read: not a text file"),
        (b"a: !!python/object:os.system {}\n", "is not valid YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    (said,) = mistakes(UnlearnSettings, tmp_path / "run.yaml", **NEEDED)
    assert said.startswith(f"{tmp_path / 'run.yaml'} ")
    assert says in said
    assert "\n" not in said


def test_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    assert mistakes(UnlearnSettings, tmp_path / "no.yaml", **NEEDED) == [f"{tmp_path / 'no.yaml'} does not exist"]
    assert mistakes(UnlearnSettings, tmp_path, **NEEDED) == [f"{tmp_path} cannot be read: Is a directory"]
    assert load_settings(UnlearnSettings, yaml_file(tmp_path, "# nothing\n"), NEEDED) == UnlearnSettings(**NEEDED)


KINDS = [kind for name, kind in vars(config).items() if name.endswith("Settings") and isinstance(kind, type)]


def hints_of(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_has_a_bound_and_every_default_keeps_to_it(kind: type[Any]) -> None:
    hints = hints_of(kind)
    numbers = [name for name, hint in hints.items() if {int, float} & {bare(hint), *get_args(bare(hint))}]
    unbounded = [name for name in numbers if marker_of(hints[name], Limit) is None]
    assert unbounded == (["seeds"] if kind is config.CompareSettings else [])
    bounded = [(f.default, marker_of(hints[f.name], Limit)) for f in fields(kind)]
    given = [(value, limit) for value, limit in bounded if limit is not None and value is not None and value is not MISSING]
    assert [value for value, limit in given if not limit.holds(value)] == []


def test_a_setting_of_one_name_has_one_bound_wherever_it_stands() -> None:
    said: dict[str, set[str | None]] = {}
    for kind in KINDS:
        for name, hint in hints_of(kind).items():
            limit = marker_of(hint, Limit)
            said.setdefault(name, set()).add(None if limit is None else limit.said)
    assert {name: words for name, words in said.items() if len(words) > 1} == {}


def test_generate_and_chat_share_their_settings() -> None:
    settings = load_settings(GenerateSettings, None, {"model": "m", "temperature": "0.7", "max_new_tokens": "12"})
    assert (settings.temperature, settings.max_new_tokens, settings.raw) == (0.7, 12, False)


def test_markers_are_read_from_a_hint() -> None:
    count, share = Limit("at least 1", lambda value: value >= 1), Limit("below 1", lambda value: value < 1)
    hint = Annotated[Annotated[float | str, count.or_auto, "first"], share, Flag("--much/--little")]
    assert (bare(hint), bare(int)) == (float | str, int)
    assert (marker_of(hint, Limit), marker_of(hint, str), marker_of(hint, Flag)) == (share, "first", "--much/--little")
    assert (marker_of(int, Limit), marker_of(Annotated[int, "help"], Flag)) == (None, None)
    assert (flag_of("much", hint), flag_of("batch_size", int)) == ("--much/--little", "--batch-size")
    assert [count.or_auto.holds(value) for value in ("auto", "fast", 1, 0, float("nan"))] == [True, False, True, False, False]


def test_parameters_are_typed_by_hints() -> None:
    assert typed({"ratio": "0.2", "n": 3.0, "x": 1}, {"ratio": float, "n": int, "name": str}) == (
        {"ratio": 0.2, "n": 3},
        ["unknown key x; known: ratio, n, name"],
    )


@pytest.mark.parametrize(
    ("kind", "incidental"),
    [
        (config.GenerateSettings, ("model", "input", "output", "prompt", "show_energy", "batch_size")),
        (
            config.EvaluateSettings,
            ("model", "original", "forget", "retain", "output", "also_forget", "also_retain", "columns", "redact"),
        ),
        (
            config.CalibrateSettings,
            (
                *("model", "retain", "forget", "near", "unrelated", "traffic", "replace"),
                *("batch_size", "columns", "unseen", "sign_key", "update"),
            ),
        ),
        (
            config.UnlearnSettings,
            (
                *("model", "forget", "retain", "near", "alternate", "output", "report_to", "columns"),
                *("plan", "devices", "memory", "long", "retain_model", "strict"),
                *("quantization", "merge", "fsdp", "recipe", "forget_below", "keep_at_least", "sign_key"),
            ),
        ),
        (config.BenchmarkSettings, ("model", "output", "data", "retain_logs", "reference_model")),
        (
            config.AnalyzeSettings,
            (
                *("model", "original", "oracle", "forget", "retain"),
                *("calibration", "output", "also_forget", "also_retain", "columns"),
            ),
        ),
    ],
)
def test_a_result_s_identity_leaves_out_what_does_not_change_it(kind: type[Any], incidental: tuple[str, ...]) -> None:
    settings = kind(**{f.name: "x" for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING})
    assert identity(settings) == {key: value for key, value in asdict(settings).items() if key not in (*incidental, "force")}


def test_what_came_later_counts_for_identity_where_it_is_not_at_its_default() -> None:
    given = {"model": "m", "forget": "f", "retain": "r", "output": "o"}
    before, after = (identity(config.UnlearnSettings(**given, recipe=recipe)) for recipe in ("size", "measured"))
    assert after == {**before, "recipe": "measured"}


def test_a_system_message_is_a_text_or_that_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    (tmp_path / "empty.txt").write_text("\n")
    assert system_message(None) is None
    assert system_message("Be kind.") == "Be kind."
    assert system_message(f"@{tmp_path}/system.txt") == "Be brief."
    for given, sentence in (
        (f"@{tmp_path}/no.txt", "cannot be read"),
        (f"@{tmp_path}/empty.txt", "is empty"),
        (" ", "is empty"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            system_message(given)
