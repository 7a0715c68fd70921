"""With `--hide-energy` nothing that a client may read tells the score of its own request, or at which token it was refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from d2unlearn.config import ServeSettings
from d2unlearn.generation.guarded import Answer
from d2unlearn.serving.run import make_service
from generation.conftest import Halves

from .conftest import NAME, Served, serving


@pytest.fixture(scope="module")
def refusals(split: Halves) -> dict[str, Answer]:
    """The refused prompts; they were refused at different tokens."""
    answers = split.guarded.answer(split.prompts)
    refused = {prompt: answer for prompt, answer in zip(split.prompts, answers, strict=True) if answer.refused}
    assert len({answer.n_tokens for answer in refused.values()}) > 1
    return refused


def counted(page: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", page, re.MULTILINE)}


def page_of(running: Served, key: str | None = None) -> str:
    sent = running.send("/metrics", headers={} if key is None else {"Authorization": f"Bearer {key}"})
    assert sent.status == 200
    return sent.body.decode()


def test_a_refusal_counts_the_tokens_of_its_words_whole_streamed_and_as_text(
    split: Halves, refusals: dict[str, Answer]
) -> None:
    tokenizer = split.guarded.tokenizer
    words = {text: len(tokenizer(text, add_special_tokens=False).input_ids) for text in split.guarded.gate.refusal_texts}  # type: ignore[union-attr]
    with serving(split.guarded, hide_energy=True) as running, running.client() as client:
        for prompt, answer in refusals.items():
            n_prompt = len(split.guarded.template.question_ids(prompt))
            whole = running.chat(prompt).json["usage"]
            assert whole == {
                "prompt_tokens": n_prompt,
                "completion_tokens": words[answer.text],
                "total_tokens": n_prompt + words[answer.text],
            }
            assert running.send("/v1/completions", {"prompt": prompt}).json["usage"] == whole
            *_, last = client.chat.completions.create(
                model=NAME,
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                stream_options={"include_usage": True},
            )
            assert last.usage is not None
            assert last.usage.completion_tokens == words[answer.text]


def test_what_is_answered_counts_as_ever(split: Halves) -> None:
    prompt = split.prompts[int(split.refused.argmin())]
    with serving(split.guarded, hide_energy=True) as running:
        assert running.chat(prompt).json["usage"]["completion_tokens"] == split.guarded.answer([prompt])[0].n_tokens


def test_metrics_before_and_after_a_request_differ_by_nothing_of_its_score(split: Halves, refusals: dict[str, Answer]) -> None:
    """Two prompts refused with the same words at different tokens change the same numbers, prompt and time aside."""
    by_words: dict[str, dict[int, str]] = {}
    for prompt, answer in refusals.items():
        by_words.setdefault(answer.text, {})[answer.n_tokens] = prompt
    pair = list(next(found for found in by_words.values() if len(found) > 1).values())[:2]
    changes = []
    with serving(split.guarded, hide_energy=True) as running:
        page_of(running)
        for prompt in pair:
            before = counted(page_of(running))
            running.chat(prompt)
            page = page_of(running)
            assert not re.search("energy|score|threshold", page)
            after = counted(page)
            kept = [name for name in after if "seconds" not in name and "created" not in name and 'kind="prompt"' not in name]
            changes.append({name: after[name] - before.get(name, 0.0) for name in kept})
    assert changes[0] == changes[1]
    assert changes[0]["d2_refusals_total"] == 1


def test_metrics_have_keys_of_their_own_and_show_everything_to_those(split: Halves, refusals: dict[str, Answer]) -> None:
    with serving(split.guarded, hide_energy=True, keys=["user"], metrics_keys=["watcher"]) as running:
        for prompt in refusals:
            running.send(
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": prompt}]},
                headers={"Authorization": "Bearer user"},
            )
        for key in ("user", "other"):
            turned_away = running.send("/metrics", headers={"Authorization": f"Bearer {key}"})
            assert (turned_away.status, turned_away.error["code"]) == (401, "invalid_api_key")
        assert running.send("/metrics").status == 401
        assert running.send("/v1/models", headers={"Authorization": "Bearer watcher"}).status == 401
        found = counted(page_of(running, "watcher"))
    assert found["d2_score_count"] == found["d2_energy_nats_count"] == len(refusals)
    assert found['d2_tokens_total{kind="completion"}'] == sum(answer.n_tokens for answer in refusals.values())


def test_metrics_keys_without_api_keys_close_metrics_alone(split: Halves) -> None:
    with serving(split.guarded, metrics_keys=["watcher"]) as running:
        assert running.send("/v1/models").status == 200
        assert running.send("/metrics").status == 401
        assert "d2_threshold" in page_of(running, "watcher")


def test_energies_are_left_out_of_metrics_only_where_clients_could_read_them(split: Halves, tmp_path: Path) -> None:
    shown = [ServeSettings(NAME), ServeSettings(NAME, hide_energy=True, metrics_keys=str(tmp_path / "keys"))]
    for settings, expected in ((shown[0], True), (shown[1], True), (ServeSettings(NAME, hide_energy=True), False)):
        service = make_service(split.guarded, settings)
        assert (b"d2_threshold" in service.metrics.page()) == expected
        service.stop()
