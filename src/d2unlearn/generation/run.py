"""`generate` from settings to answers: one prompt to lines, or a file of prompts to a file of answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d2unlearn.artifact import DONE
from d2unlearn.config import GenerateSettings, ServeSettings, identity, read_yaml
from d2unlearn.data.records import read_prompts
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.outputs import check_file, kept_settings, note_of, output_place, read_note
from d2unlearn.refusals import BY_LANGUAGE, GATE_REFUSALS, RefusalTexts, refusals_from
from d2unlearn.runtime import atomic_path, fingerprint, hash_file, say, torch_dtype, write_json
from d2unlearn.version import __version__

LANGUAGES_ALONE = "languages"
"""In the place of a file of refusals: what this package says, in the language of the request."""


def run_generate(settings: GenerateSettings) -> Iterator[str]:
    """Lines for the standard output. Raises `ConfigError` unless there is a prompt, or an input with an output."""
    mistakes = []
    if (settings.prompt is None) == (settings.input is None):
        mistakes.append("give either --prompt or --input")
    if (settings.input is None) != (settings.output is None):
        mistakes.append("--input and --output go together")
    if settings.prompt is not None and not settings.prompt.strip():
        mistakes.append("the prompt is empty")
    if mistakes:
        raise ConfigError(mistakes)
    if settings.prompt is not None:
        (answer,) = _answers(open_model(settings), [settings.prompt], settings)
        yield answer.text
        if settings.show_energy:
            say(describe(answer))
    else:
        assert settings.input is not None
        assert settings.output is not None
        yield from _answer_file(settings, Path(settings.input), output_place(settings.output))


def open_model(settings: GenerateSettings | ServeSettings) -> GuardedModel:
    """The guarded model; raw only where the settings say so. Says so when answers may grow longer than the gate was told."""
    refusals = read_refusals(settings.refusals)
    guarded = GuardedModel.from_pretrained(
        settings.model, dtype=torch_dtype(settings.dtype), raw=settings.raw, refusals=refusals
    )
    gate = guarded.gate
    if gate is not None and (settings.max_new_tokens or 0) > gate.max_new_tokens:
        say(
            f"note: the gate was calibrated on answers of up to {gate.max_new_tokens} tokens; in longer ones more than "
            f"{gate.max_false_refusal:.2%} of legitimate requests may be refused (calibrate with --max-new-tokens)"
        )
    return guarded


def read_refusals(given: str | None) -> RefusalTexts | None:
    """A file of refusals; for `languages` the texts of this package by language. Raises `ConfigError` with every mistake."""
    if given is None:
        return None
    if given == LANGUAGES_ALONE:
        return RefusalTexts(GATE_REFUSALS, BY_LANGUAGE)
    return refusals_from(read_yaml(given))


def describe(answer: Answer) -> str:
    """The decision in one line."""
    if answer.threshold is None or answer.score is None:
        return f"prompt energy {answer.energy:.2f} nats; raw: no gate decided"
    verdict = "refused" if answer.refused else "answered"
    return f"{verdict}: score {answer.score:.3f}, threshold {answer.threshold:.3f}; prompt energy {answer.energy:.2f} nats"


def _answer_file(settings: GenerateSettings, source: Path, output: Path) -> Iterator[str]:
    rows = _read_rows(source)
    note = read_note(output, "generate", force=settings.force)
    check_file(output, made=bool(note), force=settings.force, inputs=[source])
    guarded = open_model(settings)
    key = fingerprint([__version__, hash_file(source), guarded.fingerprint, identity(settings)])
    if output.is_file() and note.get("key") == key and _unchanged(output, note):
        yield DONE.format(output)
        return
    check_file(output, made=False, force=settings.force)
    for where, _, prompt in rows:
        guarded.prompt_ids(prompt, where=where)
    answers = _answers(guarded, [prompt for _, _, prompt in rows], settings)
    text = "".join(_line({**row, **_columns(a)}) for (_, row, _), a in zip(rows, answers, strict=True))
    made = {"command": "generate", "key": key, "version": __version__, "settings": kept_settings(settings)}
    with atomic_path(output) as staged:
        staged.write_text(text, encoding="utf-8")
        write_json(output_place(note_of(output)), made | {"sha256": hash_file(staged)})
    refused = sum(answer.refused for answer in answers)
    yield f"{output}: {len(answers)} answers, {refused} refused{' (raw: nothing was guarded)' if settings.raw else ''}"


def _unchanged(output: Path, note: Mapping[str, Any]) -> bool:
    """Whether a file holds what its manifest says; those of earlier versions do not say."""
    return "sha256" not in note or note["sha256"] == hash_file(output)


def _answers(guarded: GuardedModel, prompts: list[str], settings: GenerateSettings) -> list[Answer]:
    return guarded.answer(
        prompts,
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.sample,
        temperature=settings.temperature,
        top_p=settings.top_p,
        batch_size=settings.batch_size,
        seed=settings.seed,
        raw=settings.raw,
    )


def _columns(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "refused": answer.refused,
        "energy": answer.energy,
        "score": answer.score,
        "threshold": answer.threshold,
    }


def _line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON. Half of a surrogate pair in a kept field stays the escape that it was, `\\ud83d`."""
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"


def _read_rows(source: Path) -> list[tuple[str, Mapping[str, Any], str]]:
    """(place, row, prompt) of each line, every bad one named at once."""
    if not source.is_file():
        raise DataError(f"{source} {'is a folder' if source.is_dir() else 'does not exist'}; --input takes a JSONL file")
    return read_prompts(source)
