"""Methods and guards that other packages offer, by made-up distributions: found by name, never before one of ours."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from d2unlearn.artifact import versions
from d2unlearn.cli.main import app
from d2unlearn.comparison.entries import is_offered_entry, refuses_in_text
from d2unlearn.comparison.plan import comparison_of, runs_of
from d2unlearn.comparison.search import RATE, RATE_RANGE
from d2unlearn.config import CompareSettings, UnlearnSettings
from d2unlearn.errors import ConfigError
from d2unlearn.guards import GUARD_FAMILY, GUARDS, build_guard
from d2unlearn.methods import METHOD_FAMILY, METHODS, method_named
from d2unlearn.methods.eua import EUA
from d2unlearn.plugins import plugin_origin
from d2unlearn.training.run_input import build_method

METHOD = """
from dataclasses import dataclass
from d2unlearn.methods import Method, Needs
from d2unlearn.methods.base import Positive
from d2unlearn.quantities import Nll

@dataclass(frozen=True)
class Ceiling(Method):
    ceiling: Positive = 0.01
    teaches: bool = False

    @property
    def needs(self):
        return {"forget": Needs(policy=(Nll(),)), **({"alternate": Needs(policy=(Nll(),))} if self.teaches else {})}

    def loss(self, batch):
        return batch["forget"].mean(batch["forget"].policy[Nll()])

class Loose(Method):
    needs, loss = {}, None
"""
GUARD = """
from dataclasses import dataclass
from d2unlearn.guards import Guard

@dataclass(frozen=True)
class Words(Guard):
    words: int = 3
    refuses = False

    def fit(self, base, known):
        return base
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on `sys.path`: a module and its entry points, by their group."""
    before = set(sys.modules)

    def made(distribution: str, module: str, source: str, version: str = "1.2", **offered: dict[str, str]) -> None:
        place = tmp_path / distribution
        info = place / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (place / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        groups = [
            f"[d2unlearn.{group}]\n" + "".join(f"{name} = {value}\n" for name, value in names.items())
            for group, names in offered.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups))
        monkeypatch.syspath_prepend(str(place))
        importlib.invalidate_caches()

    yield made
    for name in set(sys.modules) - before:
        if name.startswith("offered_"):
            del sys.modules[name]


def test_a_method_of_another_package_is_built_with_its_parameters_and_their_ranges(install: Install) -> None:
    install("d2-ceiling", "offered_ceiling", METHOD, methods={"ceiling": "offered_ceiling:Ceiling"})
    assert build_method("ceiling", {"ceiling": 0.5}).ceiling == 0.5  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="ceiling must be positive, not -1"):
        build_method("ceiling", {"ceiling": -1.0})
    with pytest.raises(ConfigError, match="method ceiling: "):
        build_method("ceiling", {"floor": 1.0})
    assert plugin_origin(METHOD_FAMILY, "ceiling") == {"d2-ceiling": "1.2"}


def test_nothing_of_a_package_is_imported_before_its_name_is_asked_for_and_none_of_ours_is_shadowed(install: Install) -> None:
    offered = {"eua": "offered_shadow:Ceiling", "other": "offered_shadow:Ceiling"}
    install("d2-shadow", "offered_shadow", METHOD, methods=offered, guards={"prompt_guard": "offered_shadow:Ceiling"})
    assert method_named("eua") is EUA
    assert build_guard("prompt_guard", {"subjects": ["x"]}) == GUARDS["prompt_guard"](subjects=["x"])  # type: ignore[call-arg]
    assert plugin_origin(METHOD_FAMILY, "eua") == plugin_origin(GUARD_FAMILY, "prompt_guard") == {}
    with pytest.raises(ConfigError, match=r"'nothing' is not known; known: eua, .*idk_ap, and of other packages: other$"):
        build_method("nothing", {})
    assert not is_offered_entry("method", "eua")
    assert is_offered_entry("method", "other")
    assert "offered_shadow" not in sys.modules
    build_method("other", {})
    assert "offered_shadow" in sys.modules


@pytest.mark.parametrize(
    ("source", "value", "says"),
    [
        pytest.param(
            "import no_such_thing", "offered_bad:X", "cannot be loaded from offered_bad:X: No module named", id="import"
        ),
        pytest.param("1 / 0", "offered_bad:X", "cannot be loaded from offered_bad:X: division by zero", id="error"),
        pytest.param("raise SystemExit(3)", "offered_bad:X", "cannot be loaded from offered_bad:X: 3", id="exit"),
        pytest.param(
            METHOD, "offered_bad:Missing", "AttributeError: module 'offered_bad' has no attribute 'Missing'", id="name"
        ),
        pytest.param(
            METHOD, "offered_bad:Loose", "is no frozen dataclass that subclasses d2unlearn.methods.base.Method", id="kind"
        ),
        pytest.param(
            GUARD, "offered_bad:Words", "is no frozen dataclass that subclasses d2unlearn.methods.base.Method", id="guard"
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence_that_names_the_package(
    install: Install, source: str, value: str, says: str
) -> None:
    install("d2-bad", "offered_bad", source, methods={"bad": value})
    asked = ["unlearn", "--model", "m", "--forget", "f", "--retain", "r", "--output", "o", "--method", "bad"]
    done = CliRunner().invoke(app, asked)
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith("method 'bad' of d2-bad 1.2")
    assert says in str(done.exception)


def test_a_name_that_two_packages_offer_is_refused(install: Install) -> None:
    install("d2-one", "offered_one", METHOD, methods={"same": "offered_one:Ceiling"})
    install("d2-two", "offered_two", METHOD, "3", methods={"same": "offered_two:Ceiling"})
    with pytest.raises(ConfigError, match=r"'same' is offered by d2-one 1\.2 and d2-two 3: uninstall all but one"):
        build_method("same", {})


def test_entries_of_other_packages_are_compared_like_ours(install: Install) -> None:
    install(
        "d2-both",
        "offered_both",
        METHOD + GUARD,
        methods={"ceiling": "offered_both:Ceiling"},
        guards={"words": "offered_both:Words"},
    )
    settings = CompareSettings(
        "model",
        {"ten": {"forget": "f", "retain": "r"}, "one": {"forget": "f", "retain": "r", "guards": ["words"]}},
        "out",
        methods=["eua", "ceiling"],
        search={"ceiling": {"ceiling": [0.1, 0.2], "teaches": True}, "words": {"words": [1, 5]}},
        seeds=[7],
    )
    with pytest.raises(ConfigError, match=r"method 'ceiling' is not known.*guard 'words' is not known"):
        comparison_of(settings, methods=METHODS, guards=GUARDS)
    comparison = comparison_of(settings, methods=METHODS, guards=GUARDS, is_offered=is_offered_entry)
    assert "offered_both" not in sys.modules
    assert {run.key: run.kind for run in runs_of(comparison, {}) if run.entry in ("ceiling", "words")} == {
        **{f"{split}/ceiling/{part}": "method" for split in ("ten", "one") for part in ("tune", "seed-7")},
        **{f"one/words/{part}": "guard" for part in ("tune", "seed-7")},
    }
    assert comparison.spaces["ceiling"].ranges.keys() == {RATE, "ceiling"}
    assert comparison.spaces["ceiling"].ranges[RATE] == RATE_RANGE
    assert comparison.spaces["words"].ranges.keys() == {"words"}
    assert (comparison.named("method"), comparison.named("guard")) == (("eua", "ceiling"), ("words",))
    assert refuses_in_text(comparison) == ("idk", "dpo", "idk_ap", "ceiling", "embedding_corruption", "words")
    assert "d2-both" not in versions()


def test_the_settings_default_is_one_of_ours() -> None:
    assert plugin_origin(METHOD_FAMILY, UnlearnSettings("m", "f", "r", "o").method) == {}
