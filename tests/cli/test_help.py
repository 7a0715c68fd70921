"""Every verb explains itself with an example, takes a settings file, and names what it does not know."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import MISSING, Field, fields
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest
import typer

from d2unlearn import __version__, config
from d2unlearn.cli import main
from d2unlearn.cli.main import app
from d2unlearn.fields import Default, marker_of, typed

from .command import d2, refused

COMMAND: Any = typer.main.get_command(app)
ISSUE = ("quickstart", "unlearn", "calibrate", "generate", "chat", "evaluate", "report", "data check")


def verbs(command: Any = COMMAND, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command by the words it is called with."""
    if not hasattr(command, "commands"):
        return {" ".join(path): command}
    return {name: each for key, sub in command.commands.items() for name, each in verbs(sub, (*path, key)).items()}


VERBS = verbs()
SETTINGS = {
    "quickstart": (config.QuickstartSettings,),
    "unlearn": (config.UnlearnSettings,),
    "calibrate": (config.CalibrateSettings,),
    "generate": (config.GenerateSettings,),
    "chat": (config.GenerateSettings,),
    "serve": (config.ServeSettings,),
    "play": (config.PlaySettings,),
    "evaluate": (config.EvaluateSettings, config.BenchmarkSettings),
    "analyze": (config.AnalyzeSettings,),
    "audit": (config.AuditSettings,),
    "compare": (config.CompareSettings,),
    "report": (config.ReportSettings,),
    "data check": (config.CheckSettings,),
    "data make": (config.MakeSettings,),
}
"""By verb: what it reads, one or the other by what is asked for."""
SHOWN = re.compile(r"  \[default: (.*)\]$")
OPTIONS = [
    pytest.param(option, setting, get_type_hints(kind, include_extras=True)[setting.name], id=f"{verb}-{option.name}")
    for verb, kinds in SETTINGS.items()
    for kind in kinds
    for setting in fields(kind)
    for option in VERBS[verb].params
    if option.name == setting.name
]


def test_the_verbs_are_those_promised() -> None:
    assert set(ISSUE) <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_of_itself(verb: str) -> None:
    ran = d2(*verb.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    text = " ".join(re.sub(r"[│╭╮╰╯─`]", " ", ran.out).split())
    assert f"Example: d2unlearn {verb}" in text
    assert "--config" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_the_example_is_one_of_the_verb_s(verb: str) -> None:
    example = re.search(rf"`d2unlearn {verb} ([^`]*)`", str(VERBS[verb].callback.__doc__))
    assert example is not None, verb
    known = {option for parameter in VERBS[verb].params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(re.findall(r"--[a-z-]+", example[1])) <= known
    assert len(set(re.findall(r"--[a-z-]+", example[1]))) >= 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_word_of_help(verb: str) -> None:
    assert [parameter.name for parameter in VERBS[verb].params if not (getattr(parameter, "help", "") or "").strip()] == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_takes_what_the_command_line_takes(verb: str) -> None:
    keys = {parameter.name for parameter in VERBS[verb].params} - {"config", "debug"}
    known = {setting.name for kind in SETTINGS[verb] for setting in fields(kind)}
    assert keys == known or (
        verb == "chat" and keys == {"model", "max_new_tokens", "raw", "show_energy", "dtype", "refusals"} < known
    )


@pytest.mark.parametrize(("option", "setting", "hint"), OPTIONS)
def test_the_default_shown_is_the_field_s(option: Any, setting: Field[Any], hint: Any) -> None:
    """Read back as a value, or the words that stand at the field; nothing is shown where leaving out means none or no."""
    value = setting.default if setting.default_factory is MISSING else setting.default_factory()
    found, words = SHOWN.search(option.help), marker_of(hint, Default)
    assert option.default is None
    if found is None:
        assert value in (MISSING, None, [], {}) or value is False
    elif words is not None:
        assert found[1] == words
        assert value in (None, [], {}) or words == {True: "on", False: "never"}[value]
    else:
        shown = found[1].split() if isinstance(value, list) else found[1]
        assert typed({setting.name: shown}, {setting.name: hint}) == ({setting.name: value}, [])


@pytest.mark.parametrize("verb", VERBS)
def test_options_that_may_be_given_again_say_so_and_no_others(verb: str) -> None:
    assert [option.name for option in VERBS[verb].params if ("Repeatable." in option.help) != option.multiple] == []


def test_no_field_s_own_text_shows_a_default() -> None:
    kinds = [kind for kinds in SETTINGS.values() for kind in kinds]
    hints = [hint for kind in kinds for hint in get_type_hints(kind, include_extras=True).values()]
    assert [hint for hint in hints if "[default" in (marker_of(hint, str) or "[default")] == []


def test_version_and_nothing() -> None:
    assert d2("--version") == (0, f"{__version__}\n", "")
    ran = d2()
    assert (ran.code, ran.err) == (2, "")
    assert all(verb.split()[0] in ran.out for verb in ISSUE)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("forget-all",), "No such command 'forget-all' (see --help)"),
        (("unlearn", "--modle", "x"), "No such option: --modle"),
        (("unlearn", "--batch-size", "many"), "Invalid value for '--batch-size'"),
        (("generate", "stray"), "unexpected extra argument"),
        (("unlearn", "--model"), "Option '--model' requires an argument"),
    ],
)
def test_what_the_command_line_does_not_know_is_one_sentence(argv: tuple[str, ...], says: str) -> None:
    assert says in refused(d2(*argv))


def test_the_module_is_the_console_script_and_leaves_no_traceback(tmp_path: Path) -> None:
    """In a process of its own, as a person starts it."""
    command = [sys.executable, "-m", "d2unlearn.cli.main", "data", "check", "--forget", str(tmp_path / "no.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {tmp_path / 'no.jsonl'} does not exist\n")


def test_the_program_s_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("d2unlearn.report.run.run_report", fault)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        d2("report", "--before", "a", "--after", "b")


def test_control_c_ends_quietly_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("d2unlearn.report.run.run_report", interrupted)
    ran = d2("report", "--before", "a", "--after", "b")
    assert (ran.code, ran.err.strip()) == (main.STOPPED, "stopped; run the same command again to go on")


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_warning_is_one_line_without_the_place_in_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def warned(*_: object, **__: object) -> str:
        warnings.warn("this and\n   that", UserWarning, stacklevel=1)
        return "page"

    monkeypatch.setattr("d2unlearn.report.run.run_report", warned)
    assert d2("report", "--before", "a", "--after", "b") == (0, "page\n", "warning: this and that\n")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(122, "Disk quota exceeded"), "the disk is full, or a quota"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "the disk is full"),
        (RuntimeError("basic_ios::clear: iostream error"), "the disk is full"),
        (Exception("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (MemoryError(), "out of memory: choose a smaller model"),
        (PermissionError(13, "Permission denied", "rows.jsonl"), "rows.jsonl cannot be used: Permission denied"),
        (click.UsageError("Something."), "Something (see --help)"),
        (PackageNotFoundError("peft"), "the installation is incomplete, peft is missing: install d2unlearn again"),
        (ModuleNotFoundError("No module", name="datasets"), "the installation is incomplete, datasets is missing"),
    ],
)
def test_what_a_machine_runs_out_of_is_one_sentence(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("while cleaning up") from error

    def fails_plainly(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("d2unlearn.report.run.run_report", fails if "disk" in says else fails_plainly)
    assert refused(d2("report", "--before", "a", "--after", "b")).startswith(says)


def test_a_damaged_file_of_torch_is_no_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:242] . PytorchStreamReader failed reading zip archive")

    monkeypatch.setattr("d2unlearn.report.run.run_report", damaged)
    with pytest.raises(RuntimeError, match="PytorchStreamReader"):
        d2("report", "--before", "a", "--after", "b")


def test_help_names_what_cannot_be_left_out() -> None:
    """What a benchmark does without is not among it: `evaluate` needs a set to forget, or the name of one."""
    said = {verb: {option.name for option in VERBS[verb].params if "[required]" in (option.help or "")} for verb in VERBS}
    assert said["audit"] == {"model", "original", "forget", "retain", "output"}
    assert said["evaluate"] == {"model", "output"}
    assert said["quickstart"] == set()
