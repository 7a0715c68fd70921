"""Chat templates that write the date: made to write one fixed date, so that a prompt is tomorrow what it is today. Pure.

Such a template (those of Llama 3.1, 3.2, Granite) calls `strftime_now(format)`, which transformers gives it. A pinned one
defines it itself, as a macro that knows the date; it renders alike wherever it is used, without this package too.
"""

from __future__ import annotations

import json
import re
from datetime import date as Date
from datetime import datetime, time

CLOCK = "strftime_now"
_DIRECTIVE = re.compile(r"%-?[aAbBcdDeFgGhHIjmMpSuUVwWxXyYZz]")
_PINNED = re.compile(r"\{%- set d2_date = \"(\d{4}-\d{2}-\d{2})\" %\}\n")


def pinned_date(template: str | None) -> str | None:
    """The date that a template was pinned to, as 2026-11-30; None for one that was not."""
    found = _PINNED.match(template or "")
    return found.group(1) if found else None


def pinned(template: str, date: str | None = None) -> str:
    """The template with the date that it writes fixed: to `date`, today without one; at midnight, where it writes a time.

    One that writes no date, or was pinned before, is returned as it is.
    """
    if CLOCK not in template or pinned_date(template):
        return template
    moment = datetime.combine(Date.today() if date is None else Date.fromisoformat(date), time())
    directives = sorted(set(_DIRECTIVE.findall(template)))
    written = "".join(f"|replace({json.dumps(each)}, {json.dumps(moment.strftime(each))})" for each in directives)
    head = f'{{%- set d2_date = "{moment.date().isoformat()}" %}}\n'
    return f"{head}{{%- macro {CLOCK}(format) %}}{{{{ format{written} }}}}{{%- endmacro %}}\n{template}"
