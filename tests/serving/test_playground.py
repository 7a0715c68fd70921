"""The playground: what it says of an answer, and its page in a real browser, by clicks, by keys, at a phone's width."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.config import PlaySettings
from d2unlearn.errors import DataError, ModelError
from d2unlearn.gate.online import Trace
from d2unlearn.gate.score import running_scores
from d2unlearn.gate.traces import collect_traces
from d2unlearn.generation.guarded import Answer
from d2unlearn.serving.batch import GenerationRequest
from d2unlearn.serving.playground import (
    Playground,
    SampleQuestions,
    add_playground,
    given_samples,
    histogram,
    load_original,
    read_samples,
    sentence,
    shown_tokens,
)
from gate import tiny
from generation.conftest import Halves

from .conftest import Served, serving

PHONE, DESK = (390, 844), (1180, 900)


@pytest.fixture(scope="module")
def playground(split: Halves) -> Playground:
    return Playground(split.guarded, tiny.model(seed=4))


@pytest.fixture(scope="module")
def played(split: Halves, playground: Playground) -> Iterator[Served]:
    refused = [p for p, r in zip(split.prompts, split.refused, strict=True) if r]
    answered = [p for p, r in zip(split.prompts, split.refused, strict=True) if not r]
    samples = [
        SampleQuestions("forget", "forget", tuple(refused[:2])),
        SampleQuestions("<b>retain", "retain", tuple(answered[:2])),
    ]
    with serving(
        split.guarded, with_app=lambda app, service: add_playground(app, service, playground, samples, "original")
    ) as running:
        yield running


def answer(score: float | None, finish: Any, n_tokens: int, threshold: float) -> Answer:
    refused = finish == "content_filter"
    energies = (math.nan, math.inf) if score is None else (-7.0, score)
    return Answer("text", refused, *energies, threshold, n_tokens)


def test_the_decision_in_one_sentence(split: Halves) -> None:
    gate = split.guarded.gate
    assert gate is not None
    scores = tuple(np.linspace(-12, -8.5, 50).tolist())
    gate = replace(gate, calibration=replace(gate.calibration, threshold=-8.0, calibration_scores=scores))
    beside = "of the 50 retained calibration prompts scored higher."
    above = f"above the threshold of −8.00; none {beside}"
    below = "not above the threshold of −8.00"
    for made, said in (
        (answer(-8.5, "stop", 4, -8.0), f"Answered: its score stayed at −8.50, {below}; none {beside}"),
        (answer(-8.6, "length", 9, -8.0), f"Answered: its score stayed at −8.60, {below}; 2 {beside}"),
        (answer(-7.5, "content_filter", 0, -8.0), f"Refused before its first token: its score reached −7.50, {above}"),
        (answer(-7.5, "content_filter", 1, -8.0), f"Refused after one token: its score reached −7.50, {above}"),
        (answer(-7.5, "content_filter", 6, -8.0), f"Refused after 6 of its tokens: its score reached −7.50, {above}"),
        (
            answer(None, "content_filter", 0, -8.0),
            "Refused: its energy could not be computed, and what cannot be judged is not answered.",
        ),
    ):
        assert sentence(made, gate) == said


def test_an_answer_is_cut_where_its_tokens_meet(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [tokenizer.convert_tokens_to_ids(each) for each in ("w1", "a", "b", "w2", "<eos>")]
    shown = shown_tokens(tokenizer, Trace((-5.0, -4.0, float("nan"), -2.0, -1.0), tuple(ids)))
    assert "".join(token.text for token in shown) == tokenizer.decode(ids, skip_special_tokens=True)
    assert [token.place for token in shown] == [0, 1, 2, 3, 4]
    assert [token.energy for token in shown] == [-5.0, -4.0, None, -2.0, -1.0]
    assert [token.end for token in shown] == [False] * 4 + [True]


def test_tokens_that_make_one_character_together_are_shown_once_with_the_highest_of_their_energies() -> None:
    class Bytes:
        """Each id is a byte."""

        all_special_ids = (0,)

        def decode(self, ids: list[int], **_: Any) -> str:
            return bytes(i for i in ids if i).decode(errors="replace")

    ids = (*"aé👩".encode(), 0)
    shown = shown_tokens(Bytes(), Trace(tuple(map(float, range(len(ids)))), ids))  # type: ignore[arg-type]
    assert [(token.place, token.text, token.energy) for token in shown] == [
        (0, "a", 0.0),
        (2, "é", 2.0),
        (6, "👩", 6.0),
        (7, "", 7.0),
    ]
    (cut,) = shown_tokens(Bytes(), Trace((-1.0, -2.0), tuple("👩".encode()[:2])))  # type: ignore[arg-type]
    assert (cut.text, cut.energy) == ("\ufffd", -1.0)


def test_the_histogram_holds_all_scores_and_the_threshold(split: Halves) -> None:
    gate = split.guarded.gate
    assert gate is not None
    measured = replace(gate.calibration, threshold=9.0, calibration_scores=(0.0, 1.0, 1.0, 4.0), forget_scores=(8.0, 8.5))
    found = histogram(replace(gate, calibration=measured))
    assert found["low"] < 0 < 9 < found["high"]
    assert sum(found["retain"]) == pytest.approx(1)
    assert sum(found["forget"]) == pytest.approx(1)
    width = (found["high"] - found["low"]) / len(found["retain"])
    assert found["retain"][int((1.0 - found["low"]) / width)] == 0.5
    none = histogram(replace(gate, calibration=replace(measured, forget_scores=(), calibration_scores=(9.0, 9.0))))
    assert (sum(none["retain"]), sum(none["forget"])) == (1, 0)


def shown_and_expected(tokens: Sequence[dict[str, Any]], trace: Trace) -> tuple[list[float], list[float]]:
    """Energies as shown, and as they were: of tokens that are shown together the highest."""
    starts = [0, *(token["place"] + 1 for token in tokens)]
    expected = [max(trace.energies[start : token["place"] + 1]) for start, token in zip(starts, tokens, strict=False)]
    return [token["energy"] for token in tokens], expected


def test_the_three_answers_are_the_models_own_and_the_decision_is_the_gates(split: Halves, playground: Playground) -> None:
    guarded, gate = split.guarded, split.guarded.gate
    assert gate is not None
    kinds = set()
    for prompt, ids in zip(split.prompts, split.ids, strict=True):
        found = playground.compare(GenerationRequest(tuple(ids), 12))
        (answer,) = guarded.answer([prompt])
        (raw,) = collect_traces(guarded.model, guarded.tokenizer, [ids], max_new_tokens=12)
        (original,) = collect_traces(tiny.model(seed=4), guarded.tokenizer, [ids], max_new_tokens=12)
        assert found["guarded"]["text"] == answer.text
        assert found["decision"]["refused"] == found["guarded"]["refused"] == answer.refused
        for name, trace in (("raw", raw), ("original", original)):
            assert found[name]["text"] == guarded.tokenizer.decode(list(trace.token_ids), skip_special_tokens=True).strip()
            np.testing.assert_allclose(*shown_and_expected(found[name]["tokens"], trace), atol=1e-4)
            low, high = found["scale"]["low"], found["scale"]["high"]
            assert low - 1e-4 <= min(trace.energies) <= max(trace.energies) <= high + 1e-4
        if answer.refused:
            running = running_scores(gate.score, raw.energies)
            assert found["raw"]["refused_at"] == next(i for i, score in enumerate(running) if score > gate.threshold)
            assert found["guarded"]["tokens"] == ()
            kinds.add("refused")
        else:
            assert found["raw"]["refused_at"] is None
            assert found["guarded"]["tokens"] == found["raw"]["tokens"]
            kinds.add("answered")
    assert kinds == {"refused", "answered"}


def test_samples_come_from_the_artifacts_rows_or_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"w{i}?", "answer": "w1"}) + "\n" for i in range(20)))
    (one, two) = read_samples({"forget_first": str(rows), "other": str(rows)})
    assert (one.kind, two.kind) == ("forget", "retain")
    assert len(set(one.questions)) == len(set(two.questions)) == 4
    assert one.questions != two.questions
    assert read_samples({"forget_first": str(rows), "other": str(rows)}) == [one, two]
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"text": "no question"}\n')
    with pytest.raises(DataError, match="nothing to choose from"):
        read_samples({"plain": str(plain)})
    made = {"forget": str(rows), "retain": str(tmp_path / "gone.jsonl")}
    assert given_samples(PlaySettings("x"), made) == {"forget": str(rows)}
    assert (
        f"{made['retain']} is not here, so no retain questions are offered (--samples retain=FILE)" in capsys.readouterr().err
    )
    assert given_samples(PlaySettings("x", samples={"a": "b"}), made) == {"a": "b"}


def test_the_original_is_the_one_of_the_manifest_where_it_still_is(
    tmp_path: Path, split: Halves, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_original(PlaySettings("x"), {"model": str(tmp_path / "gone")}, split.guarded) == (None, "")
    assert "--original" in capsys.readouterr().err
    folder = tmp_path / "before"
    tiny.model(seed=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model, name = load_original(PlaySettings("x"), {"model": str(folder)}, split.guarded)
    assert isinstance(model, LlamaForCausalLM)
    assert name == "before"
    with pytest.raises(ModelError, match="gone"):
        load_original(PlaySettings("x", original=str(tmp_path / "gone")), {}, split.guarded)
    other = tiny.tokenizer()
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    other.save_pretrained(folder)
    with pytest.raises(ModelError, match="other tokens"):
        load_original(PlaySettings("x", original=str(folder)), {}, split.guarded)


def test_the_page_loads_nothing_from_elsewhere_and_escapes_what_it_is_given(played: Served) -> None:
    page = played.send("/")
    text = page.body.decode()
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    style, script = played.send("/play/style.css"), played.send("/play/script.js")
    assert [each.headers["content-type"].partition(";")[0] for each in (style, script)] == ["text/css", "text/javascript"]
    for part in (text, style.body.decode(), script.body.decode()):
        assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", part.replace("http://www.w3.org/2000/svg", "")) == []
    assert "&lt;b&gt;retain" in text
    assert "<b>retain" not in text
    assert played.send("/", headers={"Host": "evil.example"}).status == 421


def test_every_response_has_the_headers_that_serve_has(played: Served, served: Served, split: Halves) -> None:
    asked = {"messages": [{"role": "user", "content": split.prompts[0]}]}
    sent = [played.send(path) for path in ("/", "/play/style.css", "/play/script.js", "/health", "/metrics", "/nowhere")]
    sent += [played.send("/play/ask", asked), played.send("/play/ask", "{"), played.send("/", headers={"Host": "x.example"})]
    sent += [served.send("/health"), served.chat(split.prompts[0]), served.chat("w1", stream=True), served.send("/nowhere")]
    expected = {
        "x-d2-gate": "on",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
    }
    for each in sent:
        assert {name: each.headers.get(name) for name in expected} == expected


def test_a_question_of_the_page_is_held_to_the_servers_limits(played: Served, split: Halves) -> None:
    asked = {"messages": [{"role": "user", "content": split.prompts[0]}]}
    found = played.send("/play/ask", asked)
    assert found.status == 200
    assert sorted(found.json) == ["decision", "guarded", "original", "raw", "scale"]
    assert played.send("/play/ask", {"messages": [{"role": "user", "content": " "}]}).status == 400
    assert played.send("/play/ask", {**asked, "threshold": 1e9}).error["code"] == "unknown_parameter"
    assert played.send("/play/ask", {**asked, "max_tokens": 13}).json == found.json
    assert played.send("/play/ask", "x", headers={"Content-Type": "text/plain"}).status == 415


def test_without_an_original_two_answers_are_compared(split: Halves) -> None:
    found = Playground(split.guarded, None).compare(GenerationRequest(tuple(split.ids[0]), 12))
    assert found["original"] is None
    assert found["raw"]["text"] == split.guarded.answer(split.prompts[:1], raw=True)[0].text


def test_play_needs_a_gate(tmp_path: Path, split: Halves, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from d2unlearn.cli.main import run as run_command

    split.guarded.model.save_pretrained(tmp_path)
    split.guarded.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "argv", ["d2unlearn", "play", "--model", str(tmp_path), "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        run_command()
    assert ended.value.code == 2
    assert "has no gate" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; Debian: apt-get install chromium chromium-driver."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs a browser: chromium and chromedriver are not installed")
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1180,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield running
    running.quit()


class Page:
    """The page in the browser."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int] = DESK, theme: str = "light") -> None:
        self.browser = browser
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(url)

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        return str(self.all(selector)[0].get_property("textContent")).strip()

    def run(self, script: str) -> Any:
        return self.browser.execute_script(f"return {script}")

    def wait(self) -> None:
        """Until the answer is shown."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 30).until(lambda _: self.run("document.body.dataset.state") == "done")

    def problems(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


def test_a_click_on_a_question_shows_three_answers_the_decision_and_the_request_on_the_histogram(
    browser: Any, played: Served, split: Halves, playground: Playground
) -> None:
    page = Page(browser, played.url)
    assert page.text("#sentence") == "Nothing has been asked yet."
    for place, kind in ((0, "refused"), (2, "answered")):
        sample = page.all(".sample")[place]
        prompt = sample.text
        sample.click()
        page.wait()
        (answer,) = split.guarded.answer([prompt])
        assert answer.refused == (kind == "refused")
        assert page.text("#question") == "" and page.run("document.getElementById('question').value") == prompt  # noqa: PT018
        assert page.text("#sentence").startswith(kind.capitalize())
        assert kind in page.run("document.getElementById('verdict').className")
        shown = page.text("#guarded .answer")
        assert shown == (f"Refused{answer.text}" if answer.refused else page.text("#raw .answer"))
        assert len(page.all(".gate-stops")) == answer.refused
        assert f"this request {answer.score:.2f}".replace("-", "−") in page.text("#plot")
        assert f"{answer.score:.2f}".replace("-", "−") in page.run("document.getElementById('plot').getAttribute('aria-label')")
        colours = {token.value_of_css_property("background-color") for token in page.all("#raw .token")}
        assert len(colours) > 2
        shown = [token.get_attribute("title") for token in page.all("#raw .token")]
        found = playground.compare(GenerationRequest(tuple(split.guarded.template.question_ids(prompt)), 12))
        assert shown == [f"{token['energy']:.2f} nats".replace("-", "−") for token in found["raw"]["tokens"]]
    assert page.problems() == []


def test_everything_can_be_done_from_the_keyboard(browser: Any, played: Served, split: Halves) -> None:
    from selenium.webdriver.common.keys import Keys

    page = Page(browser, played.url)
    assert page.run("document.activeElement.id") == "question"
    browser.switch_to.active_element.send_keys(split.prompts[0] + Keys.ENTER)
    page.wait()
    first = page.text("#sentence")
    reached = []
    for _ in range(10):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(
            page.run("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
        )
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached[:5] == ["ask", "sample", "sample", "sample", "sample"]
    assert "SUMMARY" in reached
    page.run("document.querySelectorAll('.sample')[1].focus()")
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    page.wait()
    assert page.run("document.querySelectorAll('.sample')[1].getAttribute('aria-pressed')") == "true"
    assert page.text("#sentence") != first


def test_an_error_is_said_on_the_page(browser: Any, played: Served) -> None:
    page = Page(browser, played.url)
    box = page.all("#question")[0]
    page.run("document.getElementById('question').removeAttribute('maxlength')")
    page.run(f"document.getElementById('question').value = {json.dumps('w1 ' * 3000)}")
    box.submit()
    page.wait()
    assert page.text("#sentence").startswith("The answer could not be had: the prompt has")
    assert [re.sub(".*status of", "", problem) for problem in page.problems()] == [" 400 (Bad Request)"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_phone_and_its_words_can_be_read(browser: Any, played: Served, theme: str) -> None:
    page = Page(browser, played.url, PHONE, theme)
    page.all(".sample")[0].click()
    page.wait()
    assert page.run("document.documentElement.scrollWidth") == PHONE[0]
    assert page.run("document.querySelector('#plot svg').getBoundingClientRect().right") <= PHONE[0]
    lowest = page.run(CONTRAST)
    assert lowest[0] >= 4.5, lowest


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true }), known = {};
  const parse = (colour) => (known[colour] ??= read(colour));
  const read = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return { rgb: [r, g, b], a: a / 255 };
  };
  const over = (top, below, share) => top.map((value, i) => value * share + below[i] * (1 - share));
  const luminance = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const style = getComputedStyle(element), { rgb, a } = parse(style.backgroundColor), below = behind(element.parentElement);
    return over(rgb, below, a * Number(style.opacity));
  };
  const found = [...document.querySelectorAll("p, span, button, h1, h2, h3, summary, label, li, text")]
    .filter((e) => e.getClientRects().length && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
    .map((element) => {
      const style = getComputedStyle(element), ground = behind(element);
      const ink = parse(element.tagName === "text" ? style.fill : style.color);
      const drawn = over(ink.rgb, behind(element.parentElement), 1).map((v, i) =>
        v * Number(style.opacity) + behind(element.parentElement)[i] * (1 - Number(style.opacity)));
      const [one, two] = [luminance(drawn), luminance(ground)].sort((a, b) => b - a);
      return [(one + 0.05) / (two + 0.05), element.textContent.slice(0, 40), style.color];
    });
  return found.sort((a, b) => a[0] - b[0])[0];
})()"""
"""[ratio, text, colour] of the text with the lowest contrast to what is behind it (WCAG's formula)."""
