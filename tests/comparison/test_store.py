"""Results and claims on disk: what is written comes back, a claim dies with its process, other inputs are told."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2unlearn.comparison.plan import Run
from d2unlearn.comparison.records import RunResult
from d2unlearn.comparison.store import ClaimedError, Store
from d2unlearn.errors import DataError

from .made_up import run_result, tuning_result

RUN, TUNING = Run("ten", "npo", "method", 1), Run("ten", "npo", "method", None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out", tmp_path / "results")


def test_records_come_back_as_they_were_numbers_that_are_none_included(store: Store) -> None:
    run = run_result("npo", 1, [0.25, math.nan, 0.5, 1.0], [1.0] * 4, refused=([1.0] * 4, [0.0] * 4), suite={"u": math.nan})
    store.keep(run)
    store.keep(tuning_result("npo", 0.0, 0.5))
    found = store.result(RUN)
    assert isinstance(found, RunResult)
    assert math.isnan(found.sets[0].values["extraction_strength"][1])
    assert repr(found) == repr(run)
    assert store.tuning(TUNING) == tuning_result("npo", 0.0, 0.5)
    assert store.is_done(RUN)
    assert not store.is_done(Run("ten", "npo", "method", 2))


def test_a_file_of_something_else_is_an_error_that_names_it(store: Store) -> None:
    store.keep(tuning_result("npo", 0.5))
    store.path(TUNING).rename(store.path(RUN))
    with pytest.raises(DataError, match=r"seed-1\.json is not a comparison's result: .*remove it"):
        store.result(RUN)


def test_a_result_is_a_tuning_s_or_an_evaluation_s(store: Store) -> None:
    for record, run in ((run_result("npo", 1, [0.0] * 4, [1.0] * 4), RUN), (tuning_result("npo", 0.5), TUNING)):
        store.keep(record)
        assert store.result(run) == record


HOLDER = """
import sys, time
from pathlib import Path
from d2unlearn.comparison.plan import Run
from d2unlearn.comparison.records import RunResult
from d2unlearn.comparison.store import Store
with Store(Path(sys.argv[1]), Path(sys.argv[1])).claim(Run("ten", "npo", "method", 1)):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_claim_holds_against_other_processes_and_dies_with_its_own(store: Store) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(store.output)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert store.is_claimed(RUN)
        assert not store.is_claimed(TUNING)
        with pytest.raises(ClaimedError, match="another process is at work on ten/npo/seed-1"), store.claim(RUN):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=30)
        for _ in range(100):
            if not store.is_claimed(RUN):
                break
            time.sleep(0.1)
        with store.claim(RUN):
            assert store.is_claimed(TUNING) is False
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_a_claim_ends_with_its_block(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.claim(RUN):
        raise ZeroDivisionError
    assert not store.is_claimed(RUN)
