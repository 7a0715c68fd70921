"""Every error that a person can mend is a `D2Error`, and says all that is wrong."""

import inspect

import pytest
import torch

from d2unlearn import errors
from d2unlearn.errors import ConfigError, D2Error, DataError, ModelError, border, out_of_memory


def test_all_are_d2_errors() -> None:
    kinds = {name: each for name, each in vars(errors).items() if inspect.isclass(each) and each.__module__ == errors.__name__}
    assert set(kinds) == {"D2Error", "ConfigError", "DataError", "ModelError", "GateError", "ArtifactError"}
    assert [name for name, each in kinds.items() if not issubclass(each, D2Error)] == []


def test_a_config_error_holds_its_mistakes() -> None:
    error = ConfigError(["one", "two"])
    assert (error.mistakes, str(error)) == (["one", "two"], "one; two")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ImportError("no `x`: install it\nat line 3"), "MODEL could not be loaded: no `x`: install it"),
        (TypeError("can only add str"), "MODEL could not be loaded: TypeError: can only add str"),
        (KeyError("llama9"), "MODEL could not be loaded: KeyError: 'llama9'"),
        (RuntimeError("\n\n  shapes differ:\n  a"), "MODEL could not be loaded: shapes differ"),
        (ValueError(), "MODEL could not be loaded: ValueError"),
    ],
)
def test_what_another_library_raises_is_one_sentence_with_its_reason(raised: Exception, said: str) -> None:
    with pytest.raises(ModelError) as caught, border(ModelError, "MODEL could not be loaded"):
        raise raised
    assert str(caught.value) == said
    assert caught.value.__cause__ is raised


def test_our_own_errors_and_a_lack_of_memory_cross_a_border_as_they_are() -> None:
    for raised in (DataError("a.csv:1: no"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(raised)) as caught, border(ModelError, "MODEL could not be loaded"):
            raise raised
        assert caught.value is raised


def test_a_lack_of_memory_is_known_by_type_or_words_whoever_met_it() -> None:
    with pytest.raises(RuntimeError) as turned_down:
        torch.empty(2**58)
    wrapped = ValueError("the step failed")
    wrapped.__cause__ = turned_down.value
    named = type("OutOfMemoryError", (Exception,), {})()
    for error in (turned_down.value, wrapped, named, MemoryError(), RuntimeError("CUDA error: out of memory")):
        assert out_of_memory(error)
    for error in (None, ValueError("out of memory of these events"), RuntimeError("shapes differ")):
        assert not out_of_memory(error)
