"""The name that relearning had until 0.1.0 works for one version more, and says where it is now."""

from __future__ import annotations

import importlib

import pytest

from d2unlearn.attacks import relearning
from d2unlearn.schema import RelearningResult


@pytest.mark.parametrize(("old", "new"), [("relearn", relearning.relearn), ("Comeback", RelearningResult)])
def test_the_old_name_gives_the_same_thing_and_warns(old: str, new: object) -> None:
    tampering = importlib.import_module("d2unlearn.audit.tampering")
    with pytest.warns(DeprecationWarning, match=rf"is d2unlearn\.attacks\.relearning now: {old}"):
        assert getattr(tampering, old) is new
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tampering.no_such_name
