"""What a gate recognises a model by: sentences in the public domain, so that nobody's questions travel with it."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np

from d2unlearn.data.template import Template

N_PROBES = 8


def probe_texts() -> tuple[str, ...]:
    """All of them, in the order of `probe_texts.json`."""
    told = (files("d2unlearn") / "gate" / "probe_texts.json").read_text(encoding="utf-8")
    return tuple(json.loads(told)["texts"])


def probe_prompts(template: Template, longest: int | None, seed: int) -> list[list[int]]:
    """`N_PROBES` texts drawn by `seed`, as the token ids of questions; of each the last `longest` (None: all)."""
    texts = probe_texts()
    drawn = np.random.default_rng(seed).permutation(len(texts))[:N_PROBES]
    return [template.question_ids(texts[index])[-(longest or 0) :] for index in drawn]
