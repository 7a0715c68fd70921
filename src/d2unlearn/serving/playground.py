"""`play`: one page that asks three models the same question and shows what each token's energy says and the gate decides.

The page comes from the package and loads nothing from elsewhere. It shows raw answers, so it is served on loopback alone.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.artifact import read_manifest
from d2unlearn.config import PlaySettings, ServeSettings
from d2unlearn.data.records import read_examples, source_names
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError, ModelError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.online import Trace
from d2unlearn.gate.score import FirstTokens, Highest, TrailingWindow
from d2unlearn.gate.traces import collect_traces
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.runtime import pick_device, say, torch_dtype
from d2unlearn.serving.app import Call, Service, make_app
from d2unlearn.serving.batch import Completion, GenerationRequest, Piece, generate_rows
from d2unlearn.serving.engine import Busy, Stopping
from d2unlearn.serving.openai_api import ApiError, ChatRequest, json_number
from d2unlearn.serving.run import BACKLOG, listen, load, make_service, serve_app

_BINS = 44
SHOWN_SAMPLES = 4
IN_NATS = (FirstTokens, Highest, TrailingWindow)
"""Scores that are means of energies, so that a token's energy can be held against the threshold."""
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class ShownToken:
    """A token of an answer as the page shows it. `energy`: nats, of the logits that it was chosen from; None: no number.

    `place`: its position in the answer, from 0. `end`: a token that ends the answer.
    """

    place: int
    text: str
    energy: float | None
    end: bool = False


@dataclass(frozen=True)
class ShownAnswer:
    """One of the three answers. `refused_at`: place of the token that was chosen when the gate refused; None: it did not."""

    text: str
    tokens: tuple[ShownToken, ...]
    refused: bool = False
    refused_at: int | None = None


@dataclass(frozen=True)
class SampleQuestions:
    """Questions to choose from. `kind`: `forget` or `retain`, which gives the colour."""

    name: str
    kind: str
    questions: tuple[str, ...]


class Playground:
    """The three models and what the page shows of them. `compare` runs where the engine runs."""

    def __init__(self, guarded: GuardedModel, original: PreTrainedModel | None) -> None:
        assert guarded.gate is not None
        self.guarded = guarded
        self.gate: EnergyGate = guarded.gate
        self.original = original
        known = [probe.energy for probe in self.gate.probes]
        if isinstance(self.gate.score, IN_NATS):
            known += [*self.gate.calibration.calibration_scores, *self.gate.calibration.forget_scores, self.gate.threshold]
        self._low, self._high = min(known), max(known)

    def compare(self, asked: GenerationRequest) -> dict[str, Any]:
        """The answers of the original, of the unlearned model and of the gate, and the decision in one sentence."""
        answer = self._decided(asked)
        raw = self._answer(self.guarded.model, asked)
        original = None if self.original is None else self._answer(self.original, asked)
        raw = ShownAnswer(raw.text, raw.tokens, refused_at=answer.n_tokens if answer.refused else None)
        guarded = ShownAnswer(answer.text, () if answer.refused else raw.tokens, refused=answer.refused)
        return {
            "original": None if original is None else asdict(original),
            "raw": asdict(raw),
            "guarded": asdict(guarded),
            "decision": {
                "refused": answer.refused,
                "score": json_number(answer.score),
                "sentence": sentence(answer, self.gate),
            },
            "scale": self._scale(raw, original),
        }

    def _decided(self, asked: GenerationRequest) -> Answer:
        kept = _Kept()
        generate_rows(self.guarded, [asked], [kept])
        return kept.completions[0].answer

    def _answer(self, model: PreTrainedModel, asked: GenerationRequest) -> ShownAnswer:
        gate, tokenizer = self.gate, self.guarded.tokenizer
        (trace,) = collect_traces(
            model,
            tokenizer,
            [asked.prompt_ids],
            max_new_tokens=asked.max_new_tokens,
            temperature=gate.temperature,
            vocab_rows=gate.vocab_rows,
        )
        text = str(tokenizer.decode(list(trace.token_ids), skip_special_tokens=True)).strip()
        return ShownAnswer(text, shown_tokens(tokenizer, trace))

    def _scale(self, *answers: ShownAnswer | None) -> dict[str, float]:
        """The range of the colours: of all energies seen so far. Their middle is the threshold where that is in nats too."""
        seen = [token.energy for answer in answers if answer for token in answer.tokens if token.energy is not None]
        self._low, self._high = min([self._low, *seen]), max([self._high, *seen])
        middle = self.gate.threshold if isinstance(self.gate.score, IN_NATS) else (self._low + self._high) / 2
        return {"low": self._low, "middle": middle, "high": self._high}


class _Kept:
    """Keeps what comes."""

    streams = False
    gone = False

    def __init__(self) -> None:
        self.completions: list[Completion] = []

    def take(self, event: Piece | Completion) -> None:
        if isinstance(event, Completion):
            self.completions.append(event)


def shown_tokens(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> tuple[ShownToken, ...]:
    """The answer cut where its tokens meet. One without a text of its own is shown with the next, and the higher energy."""
    shown: list[ShownToken] = []
    before, highest = "", -math.inf
    for place, energy in enumerate(trace.energies):
        ids = list(trace.token_ids[: place + 1])
        whole = str(tokenizer.decode(ids, skip_special_tokens=True))
        highest = max(highest, energy)
        last = place == len(trace.energies) - 1
        if whole.endswith("\ufffd") and not last:
            continue
        text, end = whole[len(before) :], last and trace.token_ids[place] in tokenizer.all_special_ids
        if text or end:
            shown.append(ShownToken(place, text, highest if math.isfinite(highest) else None, end))
            before, highest = whole, -math.inf
    return tuple(shown)


def sentence(answer: Answer, gate: EnergyGate) -> str:
    """Why the request was refused or answered."""
    if answer.score is None or not math.isfinite(answer.score):
        return "Refused: its energy could not be computed, and what cannot be judged is not answered."
    score, threshold = _number(answer.score), _number(gate.threshold)
    scores = gate.calibration.calibration_scores
    higher = sum(other > answer.score for other in scores)
    beside = f"{higher or 'none'} of the {len(scores)} retained calibration prompts scored higher"
    if not answer.refused:
        return f"Answered: its score stayed at {score}, not above the threshold of {threshold}; {beside}."
    when = "before its first token" if answer.n_tokens == 0 else f"after {answer.n_tokens} of its tokens"
    when = "after one token" if answer.n_tokens == 1 else when
    return f"Refused {when}: its score reached {score}, above the threshold of {threshold}; {beside}."


def _number(value: float) -> str:
    """Two decimals and a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def histogram(gate: EnergyGate) -> dict[str, Any]:
    """Shares of the calibration scores in equal bins, by kind, and the ends of the axis, which holds the threshold, too."""
    retain, forget = (np.array(scores) for scores in (gate.calibration.calibration_scores, gate.calibration.forget_scores))
    everything = np.concatenate([retain, forget, [gate.threshold]])
    margin = (float(np.ptp(everything)) or 1.0) / (_BINS - 2)
    edges = np.linspace(everything.min() - margin, everything.max() + margin, _BINS + 1)
    shares = {
        kind: (np.histogram(scores, edges)[0] / max(len(scores), 1)).tolist()
        for kind, scores in (("retain", retain), ("forget", forget))
    }
    return {"low": float(edges[0]), "high": float(edges[-1]), **shares}


def read_samples(sources: Mapping[str, str | list[str]], *, seed: int = 0) -> list[SampleQuestions]:
    """A few questions of each file, drawn by the seed. Names that begin with `forget` get that colour.

    Raises `DataError` for a file without a question.
    """
    samples = []
    for name, source in sources.items():
        rows = [row.question for row in read_examples(source) if len(row.prompt) == 1 and row.question.strip()]
        if not rows:
            raise DataError(f"{source_names(source)} has no row that is a single question, so there is nothing to choose from")
        drawn = random.Random(f"{name}-{seed}").sample(rows, min(SHOWN_SAMPLES, len(rows)))
        samples.append(SampleQuestions(name, "forget" if name.startswith("forget") else "retain", tuple(drawn)))
    return samples


def given_samples(settings: PlaySettings, made: Mapping[str, Any]) -> Mapping[str, str | list[str]]:
    """The files asked for, or those that the artifact was made from, where they still are."""
    if settings.samples:
        return settings.samples
    known: dict[str, str | list[str]] = {name: made[name] for name in ("forget", "retain") if made.get(name)}
    files = {name: [source] if isinstance(source, str) else source for name, source in known.items()}
    present = {name: source for name, source in known.items() if all(Path(each).exists() for each in files[name])}
    for name in known.keys() - present.keys():
        say(f"note: {source_names(known[name])} is not here, so no {name} questions are offered (--samples {name}=FILE)")
    return present


def load_original(settings: PlaySettings, made: Mapping[str, Any], guarded: GuardedModel) -> tuple[PreTrainedModel | None, str]:
    """The model before unlearning, and its name; None where the one that the manifest names is not there any more.

    Raises `ModelError` for a model that was asked for and is none, or reads prompts as other tokens.
    """
    source = settings.original or str(made.get("model") or "")
    if not settings.original and not Path(source).is_dir():
        say("note: the model that this was made from is not here, so its answers are left out (--original DIR)")
        return None, ""
    if Template(load_tokenizer(source, date=guarded.template.date)).fingerprint != guarded.template.fingerprint:
        raise ModelError(f"{source} reads prompts as other tokens than {settings.model}, so their answers cannot be compared")
    say(f"loading {source}, from which it was made")
    model = load_model(source, dtype=torch_dtype(settings.dtype))
    model.to(pick_device())  # type: ignore[arg-type]
    return model, Path(source).name


def run_play(settings: PlaySettings) -> None:
    """Serve the page until a signal. Raises `D2Error` before it listens, as `serve` does; a gate is needed."""
    serving = ServeSettings(
        settings.model, port=settings.port, max_new_tokens=settings.max_new_tokens, dtype=settings.dtype, stop_timeout=3.0
    )
    with listen(serving.host, serving.port) as listener:
        say(f"loading {settings.model}")
        guarded = load(serving)
        made = (read_manifest(Path(settings.model)) or {}).get("settings", {})
        samples = read_samples(given_samples(settings, made))
        original, name = load_original(settings, made, guarded)
        service = make_service(guarded, serving)
        app = make_app(service)
        add_playground(app, service, Playground(guarded, original), samples, name)
        listener.listen(BACKLOG)
        say(f"open http://{serving.host}:{listener.getsockname()[1]}/ ; Ctrl-C stops")
        serve_app(app, service, serving, listener)


def add_playground(
    app: FastAPI, service: Service, playground: Playground, samples: Sequence[SampleQuestions], original: str = ""
) -> None:
    """The page, its style and script, and the question that it asks."""
    page = playground_html(playground.gate, service.name, original, samples)

    @app.get("/")
    async def home() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @app.get("/play/style.css")
    async def style() -> Response:
        return Response(
            _text("d2unlearn.report", "page.css") + _text("d2unlearn.serving", "playground.css"), media_type="text/css"
        )

    @app.get("/play/script.js")
    async def script() -> Response:
        return Response(_text("d2unlearn.serving", "playground.js"), media_type="text/javascript")

    @app.post("/play/ask")
    async def ask(body: ChatRequest, request: Request) -> dict[str, Any]:
        (asked,) = await service.asked(body, Call(False, service.limits.timeout), request)
        try:
            future = service.engine.run(lambda: playground.compare(asked))
        except (Busy, Stopping) as error:
            raise ApiError(503, str(error), code="overloaded", retry_after=1) from None
        return await asyncio.wait_for(asyncio.wrap_future(future), service.limits.timeout)


def playground_html(gate: EnergyGate, name: str, original: str, samples: Sequence[SampleQuestions]) -> str:
    """The page as HTML, with everything that it shows before a question is asked."""
    shown = {
        "threshold": gate.threshold,
        "score": gate.score_name,
        "unit": "nats" if isinstance(gate.score, IN_NATS) else "standard deviations",
        "n": {"retain": gate.n_calibration, "forget": len(gate.calibration.forget_scores)},
        "histogram": histogram(gate),
    }
    return (
        _template()
        .get_template("playground.html")
        .render(name=name, original=original, gate=gate, samples=samples, shown=shown)
    )


@cache
def _template() -> Environment:
    loader = PackageLoader("d2unlearn", "serving")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _text(package: str, name: str) -> str:
    return (files(package) / name).read_text(encoding="utf-8")
