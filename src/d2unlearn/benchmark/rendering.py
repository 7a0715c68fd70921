"""From the rows of a benchmark to token ids, in the form that a convention asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from d2unlearn.benchmark.conventions import Convention
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError, border
from d2unlearn.models import pad_token_id
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example, Message, Tokens

PLAIN_CHAT = {"user": "Question: {content}\n", "assistant": "Answer: {content}\n\n", "system": "{content}"}
"""open-unlearning's plain format (its Llama 2 configuration), for tokenizers without a chat template."""
PLAIN_LIMIT = 512
"""Tokens to which open-unlearning cuts rows of the plain format; rows of a chat template are not cut."""


@dataclass(frozen=True)
class ChatFormat:
    """What a benchmark's conversations begin with: a system message, and the date that some chat templates write."""

    system_prompt: str | None = None
    date_string: str | None = None


class Renderer:
    """Renders questions, answers and continuations under one convention. Pure apart from the tokenizer it holds."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, convention: Convention, chat: ChatFormat = ChatFormat()) -> None:
        self.tokenizer = tokenizer
        self.convention = convention
        self.chat = chat
        self.template = Template(tokenizer)

    @property
    def fingerprint(self) -> str:
        """Changes when rows would be rendered or counted differently."""
        return fingerprint([self.template.fingerprint, asdict(self.convention), asdict(self.chat)])

    @property
    def hidden_token(self) -> int | None:
        """The id that the attention mask hides wherever it stands; None: none is hidden."""
        return pad_token_id(self.tokenizer) if self.convention.masks_pad_tokens else None

    def prompt(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation with the benchmark's system message before it."""
        return messages if self.chat.system_prompt is None else (Message("system", self.chat.system_prompt), *messages)

    def prompt_ids(self, messages: tuple[Message, ...]) -> list[int]:
        """The conversation up to where the answer starts."""
        if not self.convention.typed_special_tokens:
            return self.template.prompt_ids(self.prompt(messages))
        if self.tokenizer.chat_template is None:
            return self._cut_plain(self._plain_prompt(messages))
        return self._templated(self.prompt(messages), open_answer=True)

    def row(self, example: Example, answer: str, prompt: Sequence[int]) -> Tokens:
        """A question with an answer to it. prompt: the question's `prompt_ids`."""
        if not self.convention.typed_special_tokens:
            asked = self.prompt(example.prompt)
            return self.template.tokens(Example(example.example_id, asked, answer, example.source))
        if self.tokenizer.chat_template is None:
            ids = self._cut_plain(self._plain_prompt(example.prompt) + answer)
        else:
            ids = self._templated((*self.prompt(example.prompt), Message("assistant", answer)), open_answer=False)
        return _row(example.example_id, self._ended(ids), len(prompt))

    def continuation(self, example_id: str, prefix: str, text: str, limit: int) -> Tokens:
        """Plain text after a prefix (which may be empty), `limit` tokens of it at most; a space between the two where there is
        a prefix. Without a prefix the first token, which nothing predicts, counts as its end.
        """
        before = self.prefix_ids(prefix)
        whole = self.prefix_ids(f"{prefix} {text}" if prefix else text)[: len(before) + limit]
        return _row(example_id, whole, max(len(before), 1))

    def prefix_ids(self, prefix: str) -> list[int]:
        """Plain text as the tokenizer begins a document with it."""
        return list(self.tokenizer(prefix, split_special_tokens=not self.convention.typed_special_tokens).input_ids)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens, as the convention decodes generated answers."""
        return self.cleaned(str(self.tokenizer.decode(list(ids), skip_special_tokens=True)))

    def cleaned(self, text: str) -> str:
        """A decoded text as the convention has it."""
        return str(self.tokenizer.clean_up_tokenization(text)) if self.convention.cleans_up_spaces else text

    def truth(self, answer: str, prompt: Sequence[int], row: Tokens) -> str:
        """The true answer that generated ones are held against. row: the prompt with that answer."""
        if not self.convention.truth_from_tokens:
            return answer
        return self.text(row.input_ids).replace(self.text(prompt), "").strip()

    def answer_text(self, answer: str, row: Tokens) -> str:
        """The answer whose compressed length is taken."""
        if not self.convention.truth_from_tokens:
            return answer
        ids = [token for token, of_answer in zip(row.input_ids, row.answer_mask, strict=True) if of_answer]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _templated(self, messages: Sequence[Message], *, open_answer: bool) -> list[int]:
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": open_answer}
        if self.chat.date_string is not None:
            options["date_string"] = self.chat.date_string
        turns = [{"role": m.role, "content": m.content} for m in messages]
        with border(DataError, "the chat template fails"):
            text = self.tokenizer.apply_chat_template(turns, **options)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _plain_prompt(self, messages: Sequence[Message]) -> str:
        written = "".join(PLAIN_CHAT[m.role].format(content=m.content) for m in self.prompt(tuple(messages)))
        return written + "Answer: "

    def _cut_plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)[:PLAIN_LIMIT]

    def _ended(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or ids[-1] == end else [*ids, int(end)]


def _row(example_id: str, ids: Sequence[int], start: int) -> Tokens:
    start = min(start, len(ids))
    return Tokens(example_id, tuple(ids), (False,) * start + (True,) * (len(ids) - start))
