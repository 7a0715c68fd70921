"""A guard of untouched weights under audit, in a gate's place: what it is fitted on, and what would make it look better."""

from __future__ import annotations

from collections.abc import Sequence

from d2unlearn.audit.parts import AuditRows
from d2unlearn.config import AuditSettings
from d2unlearn.data.holdout import hold_out, split_validation
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.guards import GUARD_FAMILY, GuardInputs, RefusesPrompts, build_guard
from d2unlearn.plugins import plugin_origin
from d2unlearn.schema import Example


def guard_rows(settings: AuditSettings, rows: AuditRows) -> list[Example]:
    """The retained rows that the guard is fitted on; none without a guard.

    Raises `ConfigError` for a guard that there is not, `DataError` where some rows are among those that false refusals are
    judged on.
    """
    if settings.guard is None or settings.guard_retain is None:
        return []
    build_guard(settings.guard, settings.guard_parameters)
    fitted_on = read_examples(settings.guard_retain, group_size=settings.group_size, columns=settings.columns)
    known = {content_hash(row) for row in fitted_on}
    both = [row for row in rows.retain if content_hash(row) in known]
    if both:
        raise DataError(
            f"{both[0].source}: rows of --retain stand in --guard-retain too ({len(both)} of them); false refusals are judged "
            "on requests that the guard was not fitted on"
        )
    return fitted_on


def guard_named(settings: AuditSettings) -> str:
    """The guard with its parameters as a page names it; empty for none."""
    parameters = ", ".join(f"{name} {value}" for name, value in settings.guard_parameters.items())
    return f"{settings.guard or ''}{f' ({parameters})' if parameters else ''}"


def guard_origin(settings: AuditSettings) -> dict[str, str]:
    """{distribution: version} of another package's guard; empty for one of ours, and for none."""
    return {} if settings.guard is None else plugin_origin(GUARD_FAMILY, settings.guard)


def fitted_guard(
    settings: AuditSettings, base: GuardedModel, forget: Sequence[Example], retain: Sequence[Example]
) -> RefusesPrompts | None:
    """The model behind the guard that the settings name; None for none.

    It is fitted as in a comparison: on all forgotten rows and on those retained that `unlearn` would train on; its threshold is
    set by rows held out, as a gate's. Raises `ConfigError` for an artifact that has a gate already, and for a guard that does
    not decide on a request before it is answered; `GateError` for too few rows.
    """
    if settings.guard is None:
        return None
    if base.gate is not None:
        raise ConfigError([f"{settings.model} has a gate: leave --guard out, or audit the model before unlearning behind it"])
    held = hold_out(retain, seed=settings.seed)
    _, calibration = split_validation(held.held_out, seed=settings.seed)
    known = GuardInputs(forget, held.train, calibration, settings.max_false_refusal, settings.seed)
    behind = build_guard(settings.guard, settings.guard_parameters).fit(base, known)
    if not isinstance(behind, RefusesPrompts):
        raise ConfigError(
            [f"--guard {settings.guard}: it does not decide on a request before it is answered, and cannot be audited"]
        )
    return behind
