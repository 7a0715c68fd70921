"""`serve` from settings to a process that listens: the model is loaded and held against its gate before that."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from d2unlearn.config import ServeSettings, system_message
from d2unlearn.errors import ConfigError
from d2unlearn.generation.guarded import RAW_MAX_NEW_TOKENS, GuardedModel
from d2unlearn.generation.run import open_model
from d2unlearn.models import context_length
from d2unlearn.runtime import say
from d2unlearn.schema import Message
from d2unlearn.serving.app import Service, ServiceLimits, make_app
from d2unlearn.serving.engine import Engine, EngineLimits
from d2unlearn.serving.metrics import Metrics
from d2unlearn.serving.middleware import LOOPBACK, LimitsMiddleware, PatientProtocol, Rules, key_digest
from d2unlearn.signing import check_signature

MOST_PROMPT_TOKENS = 4096
"""Where the settings name no limit."""
CHARACTERS_A_TOKEN = 32
"""A prompt with more characters for each token that may be read is turned down before it is tokenised."""
BACKLOG = 2048
"""Connections that wait to be taken up."""
OTHER_FILES = 200
"""What a server has open beside its connections, and to spare."""
GATE_ON = "on"
GATE_OFF = "off; raw answers, nothing guards them"
PROBE = (Message("user", "Who is there?"),)


def run_serve(settings: ServeSettings) -> None:
    """Serve until a signal ends it. Raises `D2Error` before it listens: no gate, a gate of other weights, an address in use."""
    keys, metrics_keys = read_keys(settings.api_keys), read_keys(settings.metrics_keys, "--metrics-keys")
    listener = listen(settings.host, settings.port)
    with listener:
        guarded = load(settings)
        service = make_service(guarded, settings)
        address = f"http://{shown_host(settings.host)}:{listener.getsockname()[1]}"
        say(f"{service.name}: {promise(guarded)}")
        if settings.host not in LOOPBACK and not keys:
            say("note: other machines can reach this server, and it asks for no API key (--api-keys FILE)")
        listener.listen(BACKLOG)
        say(f"listening on {address}/v1; Ctrl-C stops")
        serve_app(make_app(service), service, settings, listener, keys, metrics_keys)


def load(settings: ServeSettings) -> GuardedModel:
    """The model, signed where a key has to vouch for it.

    With a gate, one decision is made, so that weights or a way of decoding that it cannot watch are found now.
    """
    if settings.trust_key is not None:
        check_signature(Path(settings.model), settings.trust_key)
    guarded = open_model(settings)
    wanted = system_message(settings.system)
    if wanted is not None:
        if guarded.gate is not None and wanted != guarded.gate.system:
            say(
                "note: the gate was calibrated under another system message than --system, so its guarantee is not about these "
                "requests: `d2unlearn calibrate --system` makes one that is"
            )
        guarded.system = wanted
    if guarded.gate is not None:
        guarded.decide(PROBE)
    return guarded


def make_service(guarded: GuardedModel, settings: ServeSettings) -> Service:
    """The engine and what the routes need of it."""
    metrics = Metrics(guarded.gate, energies=not settings.hide_energy or settings.metrics_keys is not None)
    engine = Engine(
        guarded,
        EngineLimits(settings.batch_size, settings.queue, hold_back=settings.hold_back),
        on_batch=metrics.batch.observe,
        on_failure=metrics.failures.inc,
    )
    return Service(
        engine,
        settings.name or Path(settings.model).resolve().name,
        service_limits(guarded, settings),
        metrics,
        log_prompts=settings.log_prompts,
        hide_energy=settings.hide_energy,
        strict_system=settings.strict_system,
    )


def service_limits(guarded: GuardedModel, settings: ServeSettings) -> ServiceLimits:
    """What fits the model's context. Raises `ConfigError` for settings that do not."""
    default = guarded.gate.max_new_tokens if guarded.gate is not None else RAW_MAX_NEW_TOKENS
    longest = settings.max_new_tokens or default
    context = context_length(guarded.model)
    room = MOST_PROMPT_TOKENS if context is None else context - longest
    if room < 1 or (context is not None and (settings.max_prompt_tokens or 0) > room):
        asked = f"prompts of {settings.max_prompt_tokens or 1} and answers of {longest} tokens"
        raise ConfigError([f"{asked} do not fit the model's context of {context}"])
    prompt = settings.max_prompt_tokens or min(room, MOST_PROMPT_TOKENS)
    characters = settings.max_prompt_characters or CHARACTERS_A_TOKEN * prompt
    return ServiceLimits(prompt, characters, longest, min(default, longest), settings.timeout)


def promise(guarded: GuardedModel) -> str:
    """What the gate promises, or that there is none."""
    return "RAW, nothing guards these answers" if guarded.gate is None else guarded.gate.guarantee


def read_keys(file: str | None, flag: str = "--api-keys") -> tuple[bytes, ...]:
    """Digests of the keys in a file. Raises `ConfigError` for a file that cannot be read or holds none."""
    if file is None:
        return ()
    try:
        lines = Path(file).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{flag} {file} cannot be read: {getattr(error, 'strerror', None) or 'no text'}"]) from None
    if not lines:
        raise ConfigError([f"{flag} {file} holds no key: put one on each line"])
    return tuple(map(key_digest, lines))


def listen(host: str, port: int) -> socket.socket:
    """A socket with the address, which nobody can connect to yet. Raises `ConfigError` when it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        with ExitStack() as held:
            made = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            held.pop_all()
        return made
    except OSError as error:
        raise ConfigError([f"cannot listen on {host}, port {port}: {error.strerror or error}"]) from None


def shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def serve_app(
    app: FastAPI,
    service: Service,
    settings: ServeSettings,
    listener: socket.socket,
    keys: Sequence[bytes] = (),
    metrics_keys: Sequence[bytes] = (),
) -> None:
    """Serve the application until a signal."""
    allow_files(settings.connections)
    Server(app, service, settings, keys, metrics_keys).run(sockets=[listener])


def allow_files(connections: int) -> None:
    """Let this process open a file for every connection, for as many that are turned away, and for itself, where it may.

    A server out of files answers nobody. Says so where the system allows fewer; does nothing where there is no such limit.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        say(
            f"note: this process may open {allowed} files, and {connections} connections need {wanted}: raise the limit "
            f"(ulimit -Hn), or give --connections {max(1, (allowed - OTHER_FILES) // 2)}"
        )


class Server(uvicorn.Server):
    """uvicorn with limits in front; told to stop, it lets requests finish for a while, then ends them with an error."""

    def __init__(
        self,
        app: FastAPI,
        service: Service,
        settings: ServeSettings,
        keys: Sequence[bytes] = (),
        metrics_keys: Sequence[bytes] = (),
    ) -> None:
        self._service = service
        self._settings = settings
        rules = Rules(
            hosts=frozenset((*LOOPBACK, settings.host)) if settings.host in LOOPBACK else None,
            keys=tuple(keys),
            metrics_keys=tuple(metrics_keys),
            max_body_bytes=settings.max_body_bytes,
            body_seconds=min(settings.timeout, 30.0),
            request_seconds=2 * settings.timeout,
            gate=GATE_ON if service.engine.guarded.gate is not None else GATE_OFF,
        )
        config = uvicorn.Config(
            LimitsMiddleware(app, rules, service.metrics.note_request, self._too_many_connections),
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            backlog=BACKLOG,
            proxy_headers=False,
            timeout_graceful_shutdown=int(settings.stop_timeout) + 5,
        )
        super().__init__(config)

    def _too_many_connections(self) -> bool:
        return len(self.server_state.connections) > self._settings.connections

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops in good order, a second one at once; neither is raised again afterwards."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop()
        timer = asyncio.get_running_loop().call_later(self._settings.stop_timeout, self._service.end_all)
        await super().shutdown(sockets)
        timer.cancel()
        self._service.end_all()
        self._service.engine.join(5.0)
