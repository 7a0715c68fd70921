"""Every error that a person can mend is a `D2Error`, and says all that is wrong."""

import inspect

from d2unlearn import errors
from d2unlearn.errors import ConfigError, D2Error


def test_all_are_d2_errors() -> None:
    kinds = {name: each for name, each in vars(errors).items() if inspect.isclass(each)}
    assert set(kinds) == {"D2Error", "ConfigError", "DataError", "ModelError", "GateError", "ArtifactError"}
    assert [name for name, each in kinds.items() if not issubclass(each, D2Error)] == []


def test_a_config_error_holds_its_mistakes() -> None:
    error = ConfigError(["one", "two"])
    assert (error.mistakes, str(error)) == (["one", "two"], "one; two")
