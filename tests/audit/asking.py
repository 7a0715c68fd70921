"""A tiny guarded subject, rows to ask for, and models made by hand that tell exactly where they should."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from d2unlearn.attacks.requests import AttackReply, AttackRequest
from d2unlearn.audit.parts import AuditRows
from d2unlearn.schema import Example, Message

CITIES = ("Oslo", "Lima", "Rome", "Cairo", "Delhi", "Paris", "Berlin", "Quito")


def facts(prefix: str) -> list[Example]:
    return [
        Example(
            f"{prefix}-{index}",
            (Message("user", f"Where does {prefix} number {index} live these days?"),),
            f"The person lives in the old town of {city} by now.",
            f"{prefix}:{index}",
            f"{prefix}-{index // 2}",
        )
        for index, city in enumerate(CITIES)
    ]


ROWS = AuditRows(forget=facts("forgotten"), retain=facts("retained"), never_seen=facts("unseen"))


def telling(rows: Sequence[Example], when: Callable[[AttackRequest], bool]) -> Callable[..., list[AttackReply]]:
    """Answers these rows' questions, wherever they stand in a request, when it should; else knows nothing."""

    def answer(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        return [AttackReply(_found(request, rows) if when(request) else "No idea.") for request in asked]

    return answer


def _found(request: AttackRequest, rows: Sequence[Example]) -> str:
    said = " ".join(message.content for message in request.messages)
    return next((row.answer for row in rows if row.question in said), "No idea.")
