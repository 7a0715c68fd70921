"""A chat template that writes the date writes one date, whatever the clock says, with this package and without it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

import d2unlearn.template_date
import tiny_models
from d2unlearn.data.template import Template
from d2unlearn.models import load_tokenizer
from d2unlearn.schema import GATE_FILE
from d2unlearn.template_date import pinned, pinned_date

LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
)
DATED = tiny_models.CHAT_TEMPLATE.replace("<bos>", "<bos>{{ date_string }} ", 1)
QUESTION = [{"role": "user", "content": "What?"}]


@contextmanager
def clock(day: str) -> Iterator[None]:
    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return cls.fromisoformat(f"{day}T13:14:15")

    class Day(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return cls.fromisoformat(day)

    with patch.object(chat_template_utils, "datetime", Then), patch.object(d2unlearn.template_date, "Date", Day):
        yield


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (LLAMA + DATED, "<bos>30 Nov 2026 <q>What?<a>"),
        ("\n{{ strftime_now('%A, %-d.%m.%y %H:%M') }}|", "\nMonday, 30.11.26 00:00|"),
        ('{% set f = "%B %Y" %}{% macro day(f) %}[{{ strftime_now(f) }}]{% endmacro %}{{ day(f) }}', "[November 2026]"),
        (tiny_models.CHAT_TEMPLATE, "<bos><q>What?<a>"),
    ],
)
def test_a_pinned_template_writes_what_it_wrote_on_that_day(template: str, written: str) -> None:
    tokenizer = tiny_models.tokenizer(chat_template=pinned(template, "2026-11-30"))
    with clock("2027-01-02"):
        assert tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True) == written


def test_a_template_is_pinned_once_and_today_without_a_date() -> None:
    with clock("2026-12-24"):
        once = pinned(LLAMA + DATED)
    assert pinned_date(once) == "2026-12-24"
    assert pinned(once, "2027-01-02") == once == pinned(LLAMA + DATED, "2026-12-24")
    assert pinned(tiny_models.CHAT_TEMPLATE) == tiny_models.CHAT_TEMPLATE
    assert pinned_date(tiny_models.CHAT_TEMPLATE) is pinned_date(None) is None


def test_a_date_that_is_asked_for_still_comes_first() -> None:
    tokenizer = tiny_models.tokenizer(chat_template=pinned(LLAMA + DATED, "2026-11-30"))
    said = tokenizer.apply_chat_template(QUESTION, tokenize=False, date_string="1 May 2020")
    assert said == "<bos>1 May 2020 <q>What?"


def test_prompts_stay_the_same_over_midnight_and_when_the_date_is_given_again() -> None:
    with clock("2026-11-30"):
        template = Template(tiny_models.tokenizer(chat_template=LLAMA + DATED))
        before = template.question_ids("What?")
    with clock("2026-12-01"):
        assert template.question_ids("What?") == before
        again = Template(tiny_models.tokenizer(chat_template=LLAMA + DATED), date=template.date)
        assert (again.fingerprint, again.question_ids("What?")) == (template.fingerprint, before)
        assert Template(tiny_models.tokenizer(chat_template=LLAMA + DATED)).fingerprint != template.fingerprint


def test_a_tokenizer_is_loaded_pinned_and_saved_so(tmp_path: Path) -> None:
    tiny_models.tokenizer(chat_template=LLAMA + DATED).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    with clock("2026-11-30"):
        load_tokenizer(tmp_path / "model").save_pretrained(tmp_path / "artifact")
    plain = AutoTokenizer.from_pretrained(tmp_path / "artifact")
    with clock("2027-05-06"):
        assert plain.apply_chat_template(QUESTION, tokenize=False) == "<bos>30 Nov 2026 <q>What?"
        assert Template(load_tokenizer(tmp_path / "model")).date == "2027-05-06"
        (tmp_path / "model" / GATE_FILE).write_text(json.dumps({"date": "2026-11-30"}))
        assert Template(load_tokenizer(tmp_path / "model")).date == "2026-11-30"
        assert Template(load_tokenizer(tmp_path / "model", date="2026-01-01")).date == "2026-01-01"
