"""From a row of columns to an `Example`: the formats, told by their columns. Pure.

    prompt + completion     strings, or lists of messages (TRL's prompt-completion)
    question + answer       strings (TOFU, MUSE); further columns are kept
    messages                a conversation that ends with the assistant's answer
    conversations           the same with from and value in place of role and content (ShareGPT)
    instruction + output    strings, with input after the instruction where there is one (Alpaca)
    text                    plain text: there is no prompt, all of it is the answer

Headings count in any letter case. A format whose columns are all empty is none: files of several formats that were put together
have such columns. A text in a column `system` begins the conversation. A column `group` or `author` says which rows belong
together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from d2unlearn.errors import DataError
from d2unlearn.runtime import is_text
from d2unlearn.schema import Example, Message

FORMATS: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "output"),
    ("text",),
)
GROUP_COLUMNS = ("group", "author")
KNOWN = frozenset([*(name for names in FORMATS for name in names), *GROUP_COLUMNS, "input", "system"])
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
"""ShareGPT's words for roles, where they are not the roles themselves."""


class HeadingError(DataError):
    """A fault of a row's columns and not of what stands in them; the same in every row of a file, so `said` once."""

    def __init__(self, where: str, said: str) -> None:
        super().__init__(f"{where}: {said}")
        self.said = said


def heading(name: str, known: Collection[str] = KNOWN) -> str:
    """The known column of this name in any letter case, spaces around it aside; the name itself where there is none."""
    plain = name.strip().casefold()
    return plain if plain in known else name


def named(where: str, row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row under the columns' known names. columns: {known name: the file's}, for files with headings of their own.

    Raises `HeadingError` for a column that is not there or, in whatever letter case, twice.
    """
    own = {theirs.strip().casefold(): known for known, theirs in (columns or {}).items()}
    found: dict[str, Any] = {}
    for name, value in row.items():
        known = own.get(name.strip().casefold()) or heading(name)
        if known in found:
            raise HeadingError(where, f"the column {known} stands twice")
        found[known] = value
    lacking = [theirs for known, theirs in (columns or {}).items() if known not in found]
    if lacking:
        raise HeadingError(where, f"there is no column {lacking[0]}; the columns are {_listed(row)}")
    return found


def example_of(row: Mapping[str, Any], where: str = "row", *, group: str | None = None) -> Example:
    """One row of columns, e.g. of a `datasets.Dataset`, as an `Example`. group: what it belongs to where no column says so.

    Raises `DataError` for a row of no known format.
    """
    found = named(where, row)
    prompt, answer, used = _prompt_and_answer(where, found)
    own = next((str(found[name]) for name in GROUP_COLUMNS if found.get(name) is not None), group)
    return Example(where, prompt, answer, where, own, {key: value for key, value in found.items() if key not in used})


def text_of(where: str, column: str, value: object) -> str:
    """A value that should be a text. Raises `DataError` for another, or an empty one."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {column} should be a text that is not empty, not {value!r:.40}")
    if not is_text(value):
        raise DataError(f"{where}: {column} holds half of a surrogate pair, which is no character")
    return value


def _format_of(where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of the first format whose columns are there and not all empty, else of the first whose are there."""
    there = [names for names in FORMATS if all(name in row for name in names)]
    filled = [names for names in there if any(row[name] is not None for name in names)]
    if not there:
        wanted = "; ".join(" + ".join(names) for names in FORMATS)
        raise HeadingError(where, f"columns {_listed(row)} match no known format ({wanted})")
    return (filled or there)[0]


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "(none)"


def _prompt_and_answer(where: str, row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str, tuple[str, ...]]:
    """(conversation before the answer, answer, columns that were used)."""
    columns = _format_of(where, row)
    if columns == ("text",):
        return (), text_of(where, "text", row["text"]), columns
    if columns in (("messages",), ("conversations",)):
        prompt, answer = _conversation(where, columns[0], row[columns[0]])
    elif columns == ("instruction", "output"):
        prompt, answer = _instruction(where, row)
        columns = (*columns, "input")
    else:
        prompt, answer = _pair(where, columns, row)
    if row.get("system") and prompt[0].role != "system":
        prompt, columns = (Message("system", text_of(where, "system", row["system"])), *prompt), (*columns, "system")
    return prompt, answer, columns


def _conversation(where: str, column: str, turns: object) -> tuple[tuple[Message, ...], str]:
    *prompt, last = _messages(where, column, turns)
    if last.role != "assistant":
        raise DataError(f"{where}: {column} should end with the assistant's answer, not with {last.role}")
    if not prompt:
        raise DataError(f"{where}: {column} should hold a question before the answer (plain text goes under text)")
    return tuple(prompt), last.content


def _instruction(where: str, row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    asked, given = text_of(where, "instruction", row["instruction"]), row.get("input")
    if given not in (None, ""):
        asked = f"{asked}\n\n{text_of(where, 'input', given)}"
    return (Message("user", asked),), text_of(where, "output", row["output"])


def _pair(where: str, columns: tuple[str, ...], row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    question, answer = (row[name] for name in columns)
    asked = isinstance(question, list)
    prompt = _messages(where, columns[0], question) if asked else (Message("user", text_of(where, columns[0], question)),)
    if isinstance(answer, list):
        turns = _messages(where, columns[1], answer)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise DataError(
                f"{where}: {columns[1]} should be one message, the assistant's, not {' + '.join(turn.role for turn in turns)}"
            )
        answer = turns[0].content
    return prompt, text_of(where, columns[1], answer)


def _messages(where: str, column: str, value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {column} should be a list of messages that is not empty, not {value!r:.40}")
    role, content = ("from", "value") if column == "conversations" else ("role", "content")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get(role), str):
            raise DataError(f"{where}: each of {column} should have {role} and {content}, not {turn!r:.40}")
        text = text_of(where, f"{column}.{content}", turn.get(content))
        speaker = str(turn[role])
        turns.append(Message(SPEAKERS.get(speaker, speaker), text))
    return tuple(turns)
