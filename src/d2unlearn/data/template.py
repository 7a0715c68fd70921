"""Rendering a conversation into token ids: one way, the same in training, calibration and generation.

A tokenizer's chat template is used when it has one; otherwise the plain format

    <bos>Question: {user}\\nAnswer: {assistant}<eos>            (a system message stands before it, on a line of its own)

with <bos> only where the tokenizer has one. Rows of plain `text` are <bos>{text}<eos>. What a person typed never becomes a
special token: `<eos>` inside a message is tokenised as the five letters it is. (The two private-use characters that mark such
places meanwhile, U+E000 and U+E001, are left out of messages.)

A template that writes the date writes one fixed date (`template_date`).
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from d2unlearn.errors import DataError, border
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example, Message, Tokens
from d2unlearn.template_date import pinned, pinned_date

PLAIN_ROLES = {"system": "{content}\n", "user": "Question: {content}\nAnswer:", "assistant": " {content}{eos}\n"}
_TYPED = "\ue000{}\ue001"
"""Stands for a special token's text typed in a message while the template is rendered (a private-use character)."""


class Template:
    """Turns messages into token ids with a tokenizer's chat template, or with the plain format.

    date: what a template writes that writes the date and was not pinned before, today without one. Raises `DataError` for a
    tokenizer with several templates, of which none is the default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, date: str | None = None) -> None:
        self.tokenizer = tokenizer
        chosen = _default_of(tokenizer.chat_template)
        self._chat_template = None if chosen is None else pinned(chosen, date)
        self._special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content]
        pattern = "|".join(re.escape(text) for text in sorted(self._special, key=len, reverse=True))
        self._typed = re.compile(pattern) if pattern else None

    @property
    def fingerprint(self) -> str:
        """Changes when prompts would be rendered differently: the template's text and the ids of a fixed prompt."""
        sample = (Message("user", "What is the capital of France?"),)
        own = self.tokenizer.chat_template if self._chat_template is None or self.date is None else self._chat_template
        return fingerprint([own or PLAIN_ROLES, self.prompt_ids(sample)])

    @property
    def date(self) -> str | None:
        """The date that the template writes, as 2026-11-30; None for one that writes none."""
        return pinned_date(self._chat_template)

    def prompt_ids(self, messages: tuple[Message, ...]) -> list[int]:
        """The conversation up to where the answer starts. Raises `DataError` for an empty one."""
        if not messages:
            raise DataError("a prompt needs at least one message")
        return self._ids(messages, open_answer=True)

    def question_ids(self, question: str) -> list[int]:
        """`prompt_ids` of a single user message."""
        return self.prompt_ids((Message("user", question),))

    def tokens(self, example: Example) -> Tokens:
        """The whole row, with its answer marked (the answer's end token belongs to it).

        Raises `DataError` when the template does not put the answer after the prompt, so that it cannot be marked.
        """
        if not example.prompt:
            return self._plain_text(example)
        try:
            prompt = self.prompt_ids(example.prompt)
            whole = self._row_ids(prompt, example)
        except DataError as error:
            raise DataError(f"{example.source}: {error}") from None
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise DataError(
                f"{example.source}: the chat template does not continue the prompt with the answer, so the answer's "
                "tokens cannot be told; give the tokenizer a template whose generation prompt is a prefix of the row"
            )
        whole, ends = self._cut_after_end(whole, len(prompt))
        mask = (False,) * len(prompt) + (True,) * (len(whole) - len(prompt))
        return Tokens(example.example_id, tuple(whole), mask, ends)

    def text_ids(self, text: str) -> list[int]:
        """Plain text, special tokens' spellings included as text, without <bos> or <eos>."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids)

    def _plain_text(self, example: Example) -> Tokens:
        bos = [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
        eos = [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        ids = [*bos, *self.text_ids(example.answer), *eos]
        return Tokens(example.example_id, tuple(ids), (False,) * len(bos) + (True,) * (len(ids) - len(bos)), bool(eos))

    def _row_ids(self, prompt: list[int], example: Example) -> list[int]:
        """The ids of the whole row. Where the tokenizer joins the prompt's end with the answer's start, as two breaks in one
        token, they are tokenised apart, as generation meets them.
        """
        messages = (*example.prompt, Message("assistant", example.answer))
        whole, typed = self._marked_text(messages, open_answer=False)
        ids = self._tokenised(whole, typed)
        asked, _ = self._marked_text(example.prompt, open_answer=True)
        if ids[: len(prompt)] == prompt or not whole.startswith(asked):
            return ids
        rest = self._tokenised(whole[len(asked) :], typed)
        apart = self.tokenizer.decode([*prompt, *rest]) == self.tokenizer.decode(ids)
        return [*prompt, *rest] if apart else ids

    def _ids(self, messages: tuple[Message, ...], *, open_answer: bool) -> list[int]:
        return self._tokenised(*self._marked_text(messages, open_answer=open_answer))

    def _marked_text(self, messages: tuple[Message, ...], *, open_answer: bool) -> tuple[str, list[str]]:
        """What the template renders, and the spellings that its marks stand for."""
        typed: list[str] = []
        marked = [{"role": m.role, "content": self._mark(m.content, typed)} for m in messages]
        return self._rendered(marked, open_answer), typed

    def _tokenised(self, rendered: str, typed: list[str]) -> list[int]:
        """The ids of a marked text; each text between typed spellings, and each spelling, is tokenised once."""
        pieces = re.split(_TYPED.format(r"(\d+)"), rendered)
        spelled = {text: self.text_ids(text) for text in dict.fromkeys(typed)}
        between = [piece for piece in dict.fromkeys(pieces[::2]) if piece]
        found = self.tokenizer(between, add_special_tokens=False, verbose=False).input_ids if between else []
        read = {"": [], **dict(zip(between, found, strict=True))}
        each = (spelled[typed[int(piece)]] if index % 2 else read[piece] for index, piece in enumerate(pieces))
        return [token for ids in each for token in ids]

    def _mark(self, content: str, typed: list[str]) -> str:
        """The content with each special token's spelling replaced by a mark; appends the spellings to `typed`."""
        content = content.replace("\ue000", "").replace("\ue001", "")
        if self._typed is None:
            return content

        def replace(match: re.Match[str]) -> str:
            typed.append(match.group())
            return _TYPED.format(len(typed) - 1)

        return self._typed.sub(replace, content)

    def _rendered(self, messages: list[dict[str, str]], open_answer: bool) -> str:
        if self._chat_template is not None:
            options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": open_answer}
            with border(DataError, "the chat template fails"):
                try:
                    return str(self.tokenizer.apply_chat_template(messages, chat_template=self._chat_template, **options))
                except TemplateError as error:
                    roles = ", ".join(message["role"] for message in messages)
                    raise DataError(f"the chat template does not take the roles {roles}: {error}") from None
        unknown = {m["role"] for m in messages} - set(PLAIN_ROLES)
        if unknown:
            raise DataError(f"the plain format has no role {', '.join(sorted(unknown))}; give the tokenizer a chat template")
        eos = self.tokenizer.eos_token or ""
        bos = self.tokenizer.bos_token or ""
        turns = "".join(PLAIN_ROLES[m["role"]].format(content=m["content"], eos=eos) for m in messages)
        return bos + (turns if open_answer else turns.removesuffix("\n"))

    def _cut_after_end(self, ids: list[int], start: int) -> tuple[list[int], bool]:
        """The ids without what a template writes after the answer's end token (often a line break); whether there is one."""
        ends = {self.tokenizer.convert_tokens_to_ids(text) for text in self._special}
        last = next((i for i in range(len(ids) - 1, start - 1, -1) if ids[i] in ends), None)
        return (ids, False) if last is None else (ids[: last + 1], True)


def _default_of(templates: str | dict[str, str] | None) -> str | None:
    """The one template of a tokenizer, or that of several which transformers takes where none is named."""
    if not isinstance(templates, dict):
        return templates
    if "default" not in templates:
        raise DataError(
            f"the tokenizer has the chat templates {', '.join(templates)} and no default; save it with the one to be used: "
            f"tokenizer.chat_template = tokenizer.chat_template[{next(iter(templates))!r}]"
        )
    return templates["default"]
