"""The committed tables of wordings: one to train on, one to choose recipes, scores and thresholds on. None stands in both.

What is chosen on one set of wordings is judged on another that nothing here reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2unlearn.errors import ArtifactError
from d2unlearn.runtime import read_json
from d2unlearn.schema import Message
from d2unlearn.wordings.wording import Wording

_TRAINING = Path(__file__).with_name("training.json")
_CHOOSING = Path(__file__).with_name("choosing.json")


def read_wordings(path: Path) -> tuple[Wording, ...]:
    """A table: `set`, and `wordings` with the fields of `Wording`, `steps` as pairs of role and template.

    Raises `ArtifactError` for a file of another form or two wordings of one name, `ConfigError` for a wording that cannot be.
    """
    table = read_json(path)
    try:
        of_set = table["set"]
        wordings = tuple(_wording(of_set, row) for row in table["wordings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is no table of wordings: {error!r}") from error
    names = [wording.name for wording in wordings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArtifactError(f"{path} has more than one wording called {', '.join(twice)}")
    return wordings


def training_wordings() -> tuple[Wording, ...]:
    """Those that rows may be rendered in while a model is trained or a gate calibrated."""
    return read_wordings(_TRAINING)


def choosing_wordings() -> tuple[Wording, ...]:
    """Those that recipes, scores, thresholds and defaults are chosen on."""
    return read_wordings(_CHOOSING)


def _wording(of_set: str, row: dict[str, Any]) -> Wording:
    steps = tuple(Message(role, content) for role, content in row["steps"])
    return Wording(**{**row, "set": of_set, "steps": steps, "changes": tuple(row.get("changes", ()))})
