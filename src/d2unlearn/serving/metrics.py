"""What the server counts, for Prometheus. Nothing in it comes from a request's text: paths that do not exist are `other`."""

from __future__ import annotations

import math

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from d2unlearn.gate import EnergyGate
from d2unlearn.gate.groups import RequestGroup
from d2unlearn.gate.guarantees import promise_of
from d2unlearn.runtime import say
from d2unlearn.serving.batch import Completion
from d2unlearn.serving.drift import DRIFT_WINDOW, FALSE_ALARMS, RECENT, DriftWatch

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)
RAW_NATS = tuple(float(nats) for nats in range(-60, 21, 5))
DRIFTED = (
    "alarm: requests no longer score as those that the gate was calibrated on (without drift at most "
    f"{FALSE_ALARMS:.0%} of windows of {DRIFT_WINDOW} say so): see d2_recent_score_share; calibrate on requests as they are now"
)
NOT_PROMISED = {"unseen": "the gate's calibration saw none", "too few": "the gate's calibration saw too few of them"}
WITHOUT_PROMISE = (
    "no share of false refusals is guaranteed there, the pooled threshold judges them (d2_prompts_by_group_total counts them); "
    "calibrate on more rows, or with --wordings, for a guarantee"
)
KNOWN_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")


class Metrics:
    """Counters of one server, in a registry of its own. `energies`: with energies, scores and the threshold among them."""

    def __init__(self, gate: EnergyGate | None, *, energies: bool = True) -> None:
        self._energies = energies
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("d2_requests", "HTTP requests, by path and status.", ["path", "status"], registry=own)
        self.latency = Histogram(
            "d2_request_seconds", "Seconds until a response ended.", ["path"], buckets=SECONDS, registry=own
        )
        self.answers = Counter("d2_answers", "Prompts answered or refused.", ["finish"], registry=own)
        self.refusals = Counter("d2_refusals", "Prompts refused.", registry=own)
        self.other_system = Counter(
            "d2_other_system", "Prompts under another system message than the deployment's.", registry=own
        )
        self._groups = () if gate is None else gate.calibration.groups
        self._said: set[str] = set()
        self.groups = Counter(
            "d2_prompts_by_group", "Prompts, by their group and what the gate promises it.", ["group", "promise"], registry=own
        )
        self.failures = Counter(
            "d2_gate_failures", "Generations that failed; with a gate the request was refused.", registry=own
        )
        self.tokens = Counter("d2_tokens", "Tokens read and generated.", ["kind"], registry=own)
        self.batch = Histogram("d2_batch_size", "Requests answered together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own)
        self.queue = Gauge("d2_queue_length", "Requests waiting.", registry=own)
        self.energy = (
            Histogram("d2_energy_nats", "Energy at the last prompt position.", buckets=energy_buckets(gate), registry=own)
            if energies
            else None
        )
        self.score = (
            Histogram("d2_score", "The gate's score of a request.", buckets=score_buckets(gate), registry=own)
            if gate and energies
            else None
        )
        self.drift = None if gate is None else DriftWatch(gate.calibration.calibration_scores, gate.threshold)
        self.drift_alarms = Counter("d2_drift_alarms", "Times that traffic was found to have drifted.", registry=own)
        if gate is not None and energies:
            told = "Evidence that traffic drifts from calibration; an alarm at d2_drift_alarm_level."
            self._evidence = Gauge("d2_drift_evidence", told, registry=own)
            Gauge("d2_drift_alarm_level", "1 over the false alarms that are allowed.", registry=own).set(1 / FALSE_ALARMS)
            told = f"Of the last {RECENT} scores, the share at or below."
            self._recent = Gauge("d2_recent_score_share", told, ["le"], registry=own)
            self._edges = score_buckets(gate)
            Gauge("d2_threshold", "Requests that score above it are refused.", registry=own).set(gate.threshold)

    def note_request(self, path: str, status: int, seconds: float) -> None:
        """One HTTP request has ended."""
        known = path if path in KNOWN_PATHS else "other"
        self.requests.labels(known, str(status)).inc()
        self.latency.labels(known).observe(seconds)

    def note_group(self, group: RequestGroup) -> None:
        """A prompt of this group was read. The first of a group that calibration saw nothing of, or too little, is logged."""
        promise = promise_of(group, self._groups)
        self.groups.labels(group, promise).inc()
        if promise in NOT_PROMISED and group not in self._said:
            self._said.add(group)
            say(f"note: a request of the group {group!r} came, and {NOT_PROMISED[promise]}: {WITHOUT_PROMISE}")

    def note_completion(self, completion: Completion, told_tokens: int) -> None:
        """One prompt was answered or refused; its client was told of so many generated tokens."""
        answer = completion.answer
        self.answers.labels(completion.finish).inc()
        self.tokens.labels("prompt").inc(completion.n_prompt)
        self.tokens.labels("completion").inc(answer.n_tokens if self._energies else told_tokens)
        if answer.refused:
            self.refusals.inc()
        if self.energy is not None and math.isfinite(answer.energy):
            self.energy.observe(answer.energy)
        if self.score is not None and answer.score is not None and math.isfinite(answer.score):
            self.score.observe(answer.score)

    def watch(self, completion: Completion) -> None:
        """Hold an answer's score against those of calibration, whose kind of request it is; an alarm is logged."""
        score = completion.answer.score
        if self.drift is not None and score is not None and self.drift.note(score):
            self.drift_alarms.inc()
            say(DRIFTED)

    def page(self) -> bytes:
        """The counts in Prometheus' text format."""
        if self.drift is not None and self._energies:
            self._evidence.set(self.drift.evidence)
            for edge, share in zip(self._edges, self.drift.shares_up_to(self._edges), strict=True):
                self._recent.labels(f"{edge:.6g}").set(share)
        return generate_latest(self.registry)


def energy_buckets(gate: EnergyGate | None) -> tuple[float, ...]:
    """From a range below the lowest to three ranges above the highest energy of the gate's probes; raw: of models at large."""
    if gate is None or not gate.probes:
        return RAW_NATS
    energies = [probe.energy for probe in gate.probes]
    low, span = min(energies), max(max(energies) - min(energies), 1.0)
    return tuple(np.linspace(low - span, low + 4 * span, 21).round(6).tolist())


def score_buckets(gate: EnergyGate) -> tuple[float, ...]:
    """Eight up to the threshold, which is one of them, from the lowest calibration score; eight as wide beyond."""
    low = min(*gate.calibration.calibration_scores, gate.threshold - 1e-3)
    below = np.linspace(low, gate.threshold, 9)
    return (*below.tolist(), *(gate.threshold + (below[1] - below[0]) * np.arange(1, 9)).tolist())
