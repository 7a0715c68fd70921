"use strict";

const shown = JSON.parse(document.getElementById("shown").textContent);
const byId = (id) => document.getElementById(id);
const form = byId("form"), question = byId("question"), ask = byId("ask"), verdict = byId("verdict");
const columns = document.querySelector(".columns");
const FAILED = "The answer could not be had: ";
let running = null;
let request = null; // {score, refused} of the request that is shown

form.addEventListener("submit", (event) => {
  event.preventDefault();
  compare(question.value.trim());
});
for (const sample of document.querySelectorAll(".sample")) {
  sample.setAttribute("aria-pressed", "false");
  sample.addEventListener("click", () => {
    question.value = sample.textContent;
    compare(sample.textContent);
  });
}

async function compare(text) {
  if (!text) return;
  running?.abort();
  const mine = (running = new AbortController());
  busy(true, text);
  try {
    const response = await fetch("/play/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages: [{ role: "user", content: text }] }),
      signal: mine.signal,
    });
    const found = await response.json();
    if (!response.ok) throw new Error(found.error.message);
    show(found);
  } catch (error) {
    if (mine.signal.aborted) return;
    say("failed", FAILED + error.message);
  } finally {
    if (running === mine) busy(false, text);
  }
}

function busy(is, text) {
  ask.setAttribute("aria-disabled", String(is));
  columns.setAttribute("aria-busy", String(is));
  document.body.dataset.state = is ? "asking" : "done";
  for (const sample of document.querySelectorAll(".sample"))
    sample.setAttribute("aria-pressed", String(sample.textContent === text));
  if (is) say("waiting", "Asking…");
}

function say(state, text) {
  verdict.className = `card verdict ${state}`;
  byId("sentence").textContent = text;
}

function show({ original, raw, guarded, decision, scale }) {
  say(decision.refused ? "refused" : "answered", decision.sentence);
  byId("low").textContent = `low (${number(scale.low)})`;
  byId("high").textContent = `high (${number(scale.high)})`;
  const where = shown.unit === "nats" ? `at the threshold, ${number(scale.middle)}` : `half-way, at ${number(scale.middle)}`;
  byId("middle").textContent = `; no colour: ${where}`;
  if (original) fill("original", original, scale);
  fill("raw", raw, scale);
  fill("guarded", guarded, scale);
  request = decision;
  draw();
  verdict.scrollIntoView({ block: "nearest" });
}

function fill(id, answer, scale) {
  const column = byId(id), place = column.querySelector(".answer"), details = column.querySelector("details");
  column.classList.toggle("refusing", answer.refused);
  place.classList.remove("empty");
  place.replaceChildren(...(answer.refused ? [made("span", "stamp", "Refused"), made("br"), answer.text] : pieces(answer, scale)));
  if (!place.textContent) place.replaceChildren(made("span", "empty", "nothing"));
  column.querySelector(".facts").textContent = facts(answer);
  details.hidden = !answer.tokens.length;
  details.querySelector("tbody").replaceChildren(...answer.tokens.map(row));
}

function pieces(answer, scale) {
  const found = [];
  answer.tokens.forEach((token, index) => {
    const text = token.end ? "end" : token.text.trimStart();
    const space = token.text.slice(0, token.text.length - text.length);
    if (index && !token.end && space) found.push(space);
    const piece = made("span", "token", text || "␣");
    piece.style.background = colour(token.energy, scale);
    piece.title = `${energy(token)} nats`;
    piece.classList.toggle("end", token.end);
    if (answer.refused_at !== null && token.place > answer.refused_at) piece.classList.add("past");
    found.push(piece);
    const before = index ? answer.tokens[index - 1].place : -1;
    if (answer.refused_at !== null && before < answer.refused_at && token.place >= answer.refused_at) {
      piece.classList.add("cut-here");
      found.push(made("span", "gate-stops", "the gate stops here"));
    }
  });
  return found;
}

function facts(answer) {
  const numbers = answer.tokens.map((token) => token.energy).filter((value) => value !== null);
  if (!numbers.length) return answer.refused ? "no token of the answer is shown" : "";
  const highest = Math.max(...numbers), mean = numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
  return `${numbers.length} tokens; energy ${number(mean)} on average, ${number(highest)} at most`;
}

function row(token) {
  const line = made("tr");
  line.append(made("td", "", token.end ? "(end)" : token.text), made("td", "number", energy(token)));
  return line;
}

/* From the low end through the card's own colour, at the middle, to the high end. */
function colour(value, { low, middle, high }) {
  if (value === null) return "var(--hot)";
  const above = value > middle;
  const part = above ? (value - middle) / Math.max(high - middle, 1e-6) : (middle - value) / Math.max(middle - low, 1e-6);
  const share = Math.round(100 * Math.min(Math.max(part, 0), 1));
  return `color-mix(in srgb, var(${above ? "--hot" : "--cold"}) ${share}%, var(--card))`;
}

/* The calibration's histogram with the threshold, and the request once there is one. */
function draw() {
  const place = byId("plot"), width = Math.max(place.clientWidth, 260), height = 210, top = 34, bottom = 40;
  const { low, high, retain, forget } = shown.histogram;
  const x = (score) => ((Math.min(Math.max(score, low), high) - low) / (high - low)) * width;
  const most = Math.max(...retain, ...forget), base = height - bottom;
  const y = (share) => base - (share / most) * (base - top);
  const svg = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const [shares, colour] of [[retain, "var(--retain)"], [forget, "var(--forget)"]]) {
    const step = width / shares.length;
    const path = shares.map((share, i) => (share ? `M${i * step} ${base}V${y(share)}h${step}V${base}` : "")).join("");
    svg.append(drawn("path", { d: path, fill: colour, "fill-opacity": 0.32, stroke: colour, "stroke-width": 1.4 }));
  }
  svg.append(drawn("line", { x1: 0, x2: width, y1: base, y2: base, stroke: "var(--axis)" }));
  for (const tick of ticks(low, high, width < 480 ? 4 : 7))
    svg.append(label(x(tick), base + 18, number(tick, tick % 1 ? 1 : 0), "middle", "tick"));
  svg.append(label(width / 2, height - 4, `gate score (${shown.unit})`, "middle", "tick"));
  const cut = x(shown.threshold);
  svg.append(drawn("line", { x1: cut, x2: cut, y1: top - 6, y2: base, stroke: "var(--ink)", "stroke-width": 2, "stroke-dasharray": "5 4" }));
  const leftwards = cut > width / 2;
  svg.append(label(cut + (leftwards ? -7 : 7), top + 6, `threshold ${number(shown.threshold)}`, leftwards ? "end" : "start", ""));
  if (request && request.score !== null) mark(svg, x(request.score), top, base, width);
  place.replaceChildren(svg);
  place.setAttribute("aria-label", described());
}

function mark(svg, at, top, base, width) {
  const score = request.score, { low, high } = shown.histogram;
  const beyond = score < low ? "← " : score > high ? "→ " : "";
  svg.append(drawn("line", { x1: at, x2: at, y1: top - 10, y2: base, stroke: "var(--ink)", "stroke-width": 2.5 }));
  svg.append(drawn("path", { d: `M${at - 8} ${top - 22}h16l-8 13z`, fill: "var(--ink)" }));
  const near = at > width - 130 ? "end" : at < 130 ? "start" : "middle";
  const shift = near === "middle" ? 0 : near === "end" ? 8 : -8;
  const text = label(at + shift, 8, `${beyond}this request ${number(score)}`, near, "");
  text.setAttribute("font-weight", "660");
  svg.append(text);
}

function described() {
  const base = `Histogram of ${shown.n.retain} retained and ${shown.n.forget} forget scores; threshold ${number(shown.threshold)}`;
  return request && request.score !== null ? `${base}; this request ${number(request.score)}` : base;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) found.push(Math.round(tick / step) * step);
  return found;
}

function made(tag, style = "", text = "") {
  const element = document.createElement(tag);
  element.className = style;
  element.textContent = text;
  return element;
}

function drawn(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function label(x, y, text, anchor, style) {
  const element = drawn("text", { x, y, "text-anchor": anchor, class: style });
  element.textContent = text;
  return element;
}

const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const energy = (token) => (token.energy === null ? "no number" : number(token.energy));

new ResizeObserver(draw).observe(byId("plot"));
