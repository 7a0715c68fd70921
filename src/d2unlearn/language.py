"""Which language a request is written in, by a simple rule: enough to choose the words of a refusal. Pure.

    1. A script that is not Latin decides where it has at least half of the letters: kana is Japanese, and so on (`SCRIPTS`).
    2. Otherwise the language with the most words among its commonest ones (`COMMON`), if it has more than every other.
    3. Otherwise none: too short, or none of these.

It errs on single words, on names, and between languages that share a script (any Cyrillic is taken for Russian).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SCRIPTS: Mapping[str, str] = {
    "ja": "\u3040-\u30ff",
    "ko": "\uac00-\ud7af\u1100-\u11ff",
    "zh": "\u4e00-\u9fff\u3400-\u4dbf",
    "ru": "\u0400-\u04ff",
    "ar": "\u0600-\u06ff",
    "he": "\u0590-\u05ff",
    "el": "\u0370-\u03ff",
    "hi": "\u0900-\u097f",
    "th": "\u0e00-\u0e7f",
}
"""Ranges of letters of a language's script. Japanese stands first, for it is written with Chinese letters among its own."""

COMMON: Mapping[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the is are was what who which of and how does did where when why you can tell to in about his her it",
        "de": "der die das und ist war wer was wie wo wann warum welche welcher nicht ein eine von hat sind im den mit",
        "fr": "le la les des est était qui que quel quelle où quand comment pourquoi une et dans du sont il elle",
        "es": "el la los las es fue qué quién cuál dónde cuándo cómo por una del y en son su con",
        "it": "il lo la gli è chi che cosa dove quando come perché una di della sono quale nel con",
        "pt": "o a os as é foi quem qual onde quando como uma do da em são não você que com",
        "nl": "de het een is was wie wat waar wanneer hoe waarom van zijn welke niet en in met",
        "pl": "kto co jest był gdzie kiedy jak czy nie w z się na do jaki jaka które",
    }.items()
}
"""Words that questions in a language are made of."""

LANGUAGES = frozenset({*SCRIPTS, *COMMON})


def language_of(text: str) -> str | None:
    """The language's code (ISO 639-1), or None where the rule cannot tell."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    letters = "".join(words)
    for language, ranges in SCRIPTS.items():
        own = len(re.findall(f"[{ranges}]", letters))
        if own and (2 * own >= len(letters) or (language == "ja" and 2 * _east_asian(letters) >= len(letters))):
            return language
    hits = {language: sum(word in common for word in words) for language, common in COMMON.items()}
    first, second = sorted(hits.values(), reverse=True)[:2]
    return max(hits, key=lambda language: hits[language]) if first > second else None


def _east_asian(letters: str) -> int:
    return len(re.findall(f"[{SCRIPTS['ja']}{SCRIPTS['zh']}]", letters))
