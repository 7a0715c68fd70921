"""Property tests: short and the same every time in `make test`; longer by hand, with others each time.

make test PYTEST_ARGS="tests/properties --hypothesis-profile=long"
"""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from gate.conftest import gate, model, one_thread, tokenizer

__all__ = ["gate", "model", "one_thread", "tokenizer"]

SAME = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}

settings.register_profile(
    "short", max_examples=30, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate), **SAME
)
settings.register_profile("long", max_examples=5000, database=None, **SAME)
settings.load_profile("short")
