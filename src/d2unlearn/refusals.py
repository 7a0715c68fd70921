"""The words of a refusal: those that a gate says, those that a model can be taught to say, and how answers that refuse begin.

Which of them a prompt gets depends on seed and content alone. A product's own (`RefusalTexts`) are chosen by what the request
is about and the language it is written in; they are fixed texts, so nothing of what is refused can stand in one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from d2unlearn.errors import ConfigError
from d2unlearn.language import LANGUAGES, language_of
from d2unlearn.runtime import fingerprint

GATE_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I don't have any information about that.",
    "That is not something I can answer.",
    "I'm afraid I don't know anything about this.",
)
"""What a gate or a guard says, unless it is told otherwise."""

BY_LANGUAGE: Mapping[str, tuple[str, ...]] = {
    "en": GATE_REFUSALS,
    "de": ("Das kann ich leider nicht beantworten.",),
    "fr": ("Je suis désolé, je ne peux pas répondre à cela.",),
    "es": ("Lo siento, no puedo responder a eso.",),
    "it": ("Mi dispiace, non posso rispondere a questa domanda.",),
    "pt": ("Desculpe, não posso responder a isso.",),
    "nl": ("Sorry, daar kan ik geen antwoord op geven.",),
    "pl": ("Przepraszam, nie mogę na to odpowiedzieć.",),
    "ru": ("К сожалению, я не могу на это ответить.",),
    "zh": ("抱歉，我无法回答这个问题。",),
    "ja": ("申し訳ありませんが、それにはお答えできません。",),
    "ko": ("죄송하지만 그 질문에는 답변할 수 없습니다.",),
    "ar": ("عذرًا، لا يمكنني الإجابة عن ذلك.",),
    "he": ("מצטער, איני יכול לענות על כך.",),
    "el": ("Λυπάμαι, δεν μπορώ να απαντήσω σε αυτό.",),
    "hi": ("क्षमा करें, मैं इसका उत्तर नहीं दे सकता।",),
    "th": ("ขออภัย ไม่สามารถตอบคำถามนี้ได้",),
}
"""What `--refusals languages` says, by the language of the request."""

TAUGHT_REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information about this.",
    "I'm afraid I can't answer that.",
    "That is something I don't know.",
    "I can't tell you anything about that.",
    "I'm sorry, but I don't know the answer.",
    "This is unknown to me.",
    "I don't have an answer to this question.",
    "I haven't learned about that.",
    "Unfortunately, I know nothing about this subject.",
    "I'm not able to say.",
    "My knowledge does not reach that far.",
    "I have never heard of this.",
    "I can't help with this question.",
    "That lies outside of what I know.",
    "I would have to guess, so I'd rather not answer.",
    "Nothing about this is known to me.",
    "I don't have details on that topic.",
    "Sorry, I have no answer for you here.",
    "I can't recall anything about that.",
    "It's not a matter that I am familiar with.",
    "I'm unable to give you that information.",
    "I wish I could answer, but I don't know.",
)
"""What methods that train refusals (`idk`, `dpo`, `idk_ap`) put in place of an answer."""

REFUSAL_BEGINNINGS = (
    "i don't know",
    "i do not know",
    "i'm not sure",
    "i am not sure",
    "i can't",
    "i cannot",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i'm not familiar",
    "i am not familiar",
    "i have no information",
    "i don't have",
    "i do not have",
    "i'm sorry",
    "i am sorry",
)
"""How an answer begins that refuses in words, in lower case."""


def content_seed(seed: int, content: str | Sequence[int]) -> int:
    """A number below 2^48 drawn from a text or token ids and a seed: the same on every machine, wherever the row stands."""
    plain = content if isinstance(content, str) else [int(i) for i in content]
    return int(fingerprint([seed, plain])[:12], 16)


def refusal_index(seed: int, content: str | Sequence[int], n_refusals: int) -> int:
    """Which of the refusals a prompt is answered with: always the same one for the same prompt."""
    return content_seed(seed, content) % n_refusals


@dataclass(frozen=True)
class RefusalTopic:
    """What is said of a topic: a request is about it where one of `words` stands in it, whole and in any case."""

    words: tuple[str, ...]
    default: tuple[str, ...]
    languages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def is_in(self, text: str) -> bool:
        return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE) for word in self.words)


@dataclass(frozen=True)
class RefusalTexts:
    """A product's own refusals. The first topic that the request is about has its words, and any other request the rest."""

    default: tuple[str, ...]
    languages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    topics: tuple[RefusalTopic, ...] = ()

    def choose_from(self, question: str) -> tuple[str, ...]:
        """The texts for a request: those of its topic in its language, else of its topic, and so for no topic."""
        of = next((topic for topic in self.topics if topic.is_in(question)), self)
        return of.languages.get(language_of(question) or "", of.default)

    @property
    def every(self) -> tuple[str, ...]:
        """All that may be said."""
        parts: list[RefusalTexts | RefusalTopic] = [self, *self.topics]
        said = [texts for of in parts for texts in (of.default, *of.languages.values())]
        return tuple(dict.fromkeys(text for texts in said for text in texts))


def refusals_from(given: Mapping[str, Any]) -> RefusalTexts:
    """The refusals that a mapping names: `default`, `languages`, `topics` (of `words`, `default`, `languages`), `contact`.

    A text may hold `{contact}` and no other place to fill. Raises `ConfigError` with every mistake.
    """
    mistakes: list[str] = []
    contact = given.get("contact")
    if contact is not None and not (isinstance(contact, str) and contact.strip()):
        mistakes.append("contact: should be a text")
    topics = given.get("topics") or []
    if not isinstance(topics, list) or not all(isinstance(topic, Mapping) for topic in topics):
        mistakes.append("topics: should be a list, each with words and default")
        topics = []
    _unknown(given, {"default", "languages", "topics", "contact"}, "", mistakes)
    made = []
    for number, topic in enumerate(topics, 1):
        _unknown(topic, {"words", "default", "languages"}, f"topic {number}: ", mistakes)
        words = _texts(topic.get("words"), f"topic {number}: words", "", mistakes)
        made.append(RefusalTopic(words, *_both(topic, f"topic {number}: ", contact, mistakes)))
    texts = RefusalTexts(*_both(given, "", contact, mistakes), tuple(made))
    if mistakes:
        raise ConfigError([f"refusals: {mistake}" for mistake in mistakes])
    return texts


def _unknown(given: Mapping[str, Any], known: set[str], where: str, mistakes: list[str]) -> None:
    mistakes += [f"{where}{key} is not known; there are {', '.join(sorted(known))}" for key in given if key not in known]


def _both(
    given: Mapping[str, Any], where: str, contact: Any, mistakes: list[str]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The default texts and those by language."""
    languages = given.get("languages") or {}
    if not isinstance(languages, Mapping):
        mistakes.append(f"{where}languages: should be texts by language, such as de: ...")
        languages = {}
    known = ", ".join(sorted(LANGUAGES))
    mistakes += [f"{where}language {name!r} is not told apart here; {known} are" for name in languages if name not in LANGUAGES]
    default = _texts(given.get("default"), f"{where}default", contact, mistakes)
    named = languages.items()
    return default, {str(name): _texts(texts, f"{where}languages: {name}", contact, mistakes) for name, texts in named}


def _texts(given: Any, where: str, contact: Any, mistakes: list[str]) -> tuple[str, ...]:
    """A text or several, with `{contact}` filled in."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        mistakes.append(f"{where}: should be a text, or a list of texts")
        return ()
    asked = sorted({name for text in texts for name in re.findall(r"\{(\w*)\}", text)} - {"contact"})
    if asked:
        mistakes.append(f"{where}: only {{contact}} is filled in, not {{{asked[0]}}}: nothing of a request is repeated")
    if contact is None and any("{contact}" in text for text in texts):
        mistakes.append(f"{where}: holds {{contact}}, and no contact is given")
    return tuple(text.replace("{contact}", str(contact)) for text in texts)
