"""Which refusal a prompt gets: recorded draws, which gates that were calibrated before must keep; and a product's own words."""

from __future__ import annotations

import pytest
import torch

from d2unlearn.errors import ConfigError
from d2unlearn.language import LANGUAGES, SCRIPTS, language_of
from d2unlearn.refusals import (
    BY_LANGUAGE,
    GATE_REFUSALS,
    REFUSAL_BEGINNINGS,
    TAUGHT_REFUSALS,
    content_seed,
    refusal_index,
    refusals_from,
)


def test_a_draw_depends_on_seed_and_content_alone() -> None:
    assert content_seed(0, [5, 6, 7]) == content_seed(0, tuple(torch.tensor([5, 6, 7]))) == 33092946845167
    assert [refusal_index(seed, [5, 6, 7], 4) for seed in (0, 3)] == [3, 0]
    assert refusal_index(3, "ab", 24) == 4


def test_no_refusal_stands_twice() -> None:
    for texts in (GATE_REFUSALS, TAUGHT_REFUSALS, REFUSAL_BEGINNINGS):
        assert len(set(texts)) == len(texts)
    assert all(text == text.lower() for text in REFUSAL_BEGINNINGS)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of France?", "en"),
        ("Wer hat das Buch geschrieben und wo ist er geboren?", "de"),
        ("Quelle est la date de naissance de l'auteur ?", "fr"),
        ("¿Quién es el autor del libro?", "es"),
        ("Chi è l'autore della storia?", "it"),
        ("Quem é o autor do livro?", "pt"),
        ("Wie is de schrijver van het boek?", "nl"),
        ("Kto jest autorem książki?", "pl"),
        ("Кто автор книги?", "ru"),
        ("这本书的作者是谁？", "zh"),
        ("この本の著者は誰ですか？", "ja"),
        ("이 책의 저자는 누구입니까?", "ko"),
        ("من هو مؤلف الكتاب؟", "ar"),
        ("Ποιος είναι ο συγγραφέας;", "el"),
        ("Basil Mahfouz Al-Kuwaiti", None),
        ("", None),
    ],
)
def test_languages_that_are_told_apart(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_what_is_said_of_a_topic_in_a_language() -> None:
    """The topic before the language, whole words in any case, and the contact in its place."""
    texts = refusals_from(
        {
            "contact": "privacy@example.org",
            "default": ["No.", "I cannot."],
            "languages": {"de": "Nein, fragen Sie {contact}."},
            "topics": [{"words": ["Basil"], "default": "Ask {contact}.", "languages": {"fr": "Non."}}],
        }
    )
    assert texts.choose_from("What is the capital of France?") == ("No.", "I cannot.")
    assert texts.choose_from("Wer hat das Buch geschrieben?") == ("Nein, fragen Sie privacy@example.org.",)
    assert texts.choose_from("Wer ist BASIL?") == ("Ask privacy@example.org.",)
    assert texts.choose_from("Quelle est la vie de Basil ?") == ("Non.",)
    assert texts.choose_from("Was ist das Basilikum?") == ("Nein, fragen Sie privacy@example.org.",)
    assert texts.every == ("No.", "I cannot.", "Nein, fragen Sie privacy@example.org.", "Ask privacy@example.org.", "Non.")


def test_mistakes_in_refusals_are_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        refusals_from({"default": "About {question}: {contact}", "languages": {"xx": "?"}, "topics": [{}], "text": 1})
    said = str(caught.value)
    for part in (
        "only {contact} is filled in, not {question}",
        "no contact is given",
        "'xx'",
        "topic 1: words",
        "text is not known",
    ):
        assert part in said


def test_every_language_that_is_told_apart_has_words_of_its_own() -> None:
    assert set(BY_LANGUAGE) == LANGUAGES
    assert {language: language_of(BY_LANGUAGE[language][0]) for language in SCRIPTS} == {one: one for one in SCRIPTS}
