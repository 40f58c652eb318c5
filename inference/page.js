// Everything that comes from the store is put into the page as text, never as markup.
"use strict";

const at = (id) => document.getElementById(id);
const query = at("query"), answers = at("answers"), said = at("said");
const floor = (share) => Math.floor(1000 * share) / 10;  // 100 % only where nothing lacks
const figure = new Intl.NumberFormat("en"), MOST_SHOWN = 100, LONG = 140;
let status = {}, options = null;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const text = (tag, className, words) => make(tag, { className, dir: "auto", textContent: words });

async function read(address, body) {
  const posted = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(address, posted);
  const content = await response.json();
  if (!response.ok) throw new Error(content.error.message);
  return content;
}

function shares(logprobs) {
  if (!options || options.length !== logprobs.length) return [];
  const most = Math.max(...logprobs), odds = logprobs.map((value) => Math.exp(value - most));
  const total = odds.reduce((sum, value) => sum + value, 0);
  const ranked = odds.map((value, i) => [value / total, options[i]]).sort((a, b) => b[0] - a[0]).slice(0, 4);
  const cells = ranked.flatMap(([share, option]) => [
    text("span", "", option),
    make("meter", { value: share, ariaLabel: `share of ${option}` }),
    make("b", { textContent: `${(100 * share).toFixed(1)} %` }),
  ]);
  return [make("div", { className: "shares" }, ...cells)];
}

function card(asked, result) {
  if (result.error) return make("li", { className: "error" }, text("div", "query", asked), text("div", "answer", result.error.message));
  const top = text("div", "query", result.query);
  if (!result.found) return make("li", { className: "miss" }, top, text("div", "answer", "Not in the store"));
  if (result.online) top.append(" ", make("span", { className: "tag", textContent: "asked now, and recorded" }));
  const payload = make("details", {}, make("summary", { textContent: "What is stored" }),
    make("pre", { textContent: Object.entries(result.payload).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join("\n") }));
  return make("li", {}, top, text("div", result.answer.length > LONG ? "long answer" : "answer", result.answer), ...shares(result.payload.logprobs || []), payload);
}

async function ask(lines, readOnly) {
  const one = lines.length === 1, start = performance.now();
  let results;
  try {
    if (readOnly) results = [await read(`/lookup?q=${encodeURIComponent(lines[0])}`)];
    else if (one) results = [await read("/lookup", { query: lines[0] })];
    else results = (await read("/lookup", { queries: lines })).results;
    const found = results.filter((result) => result.found).length, took = `${(performance.now() - start).toFixed(1)} ms`;
    said.textContent = one ? (found ? `Found in ${took}` : `Not found, ${took}`) : `${found} of ${results.length} found in ${took}`;
  } catch (error) {
    results = [{ error }];
    said.textContent = "";
  }
  const asked = results.length === lines.length ? lines : [lines.join(" ")];
  answers.prepend(...results.map((result, i) => card(asked[i], result)));
  while (answers.children.length > MOST_SHOWN) answers.lastChild.remove();
  history.replaceState(null, "", one ? `?q=${encodeURIComponent(lines[0])}` : "/");
  refresh();
}

function submit() {
  const lines = query.value.split("\n").filter((line) => line.trim());
  if (lines.length) ask(lines);
  query.select();
}

const fit = () => { query.rows = Math.min(12, query.value.split("\n").length); };

function show() {
  at("store").textContent = status.store;
  document.title = `${status.store} · Limbeck look-up`;
  at("state").textContent = status.problem ? `old file served: ${status.problem}` : "serving";
  at("state").className = status.problem ? "state bad" : "state ok";
  for (const name of ["rows", "queries", "failures"]) at(name).textContent = figure.format(status[name]);
  at("coverage").textContent = `${floor(status.coverage)} % of the job's`;
  const reasons = Object.entries(status.reasons);
  at("reasons").textContent = reasons.length ? reasons[0][0] : "";
  at("reasons").title = reasons.map(([words, number]) => `${number}: ${words}`).join("\n");
  const { hit, miss, online } = status.asked, asked = hit + miss + online;
  at("rate").textContent = asked ? `${floor(hit / asked)} %` : "–";
  at("asked").textContent = `${figure.format(hit)} of ${figure.format(asked)} asked` + (online ? `, ${figure.format(online)} online` : "");
  const size = status.bytes > 1e6 ? `${(status.bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(status.bytes / 1e3)} kB`;
  const facts = [...status.about, ["file", status.digest ? `${size}, SHA-256 ${status.digest.slice(0, 12)}…` : `${size}, which may grow`],
    ["served since", new Date(1000 * status.since).toLocaleString("en-GB") + (status.swaps ? `, file ${status.swaps + 1}` : "")]];
  at("about").replaceChildren(...facts.flatMap(([name, words]) => [make("dt", { textContent: name }), text("dd", "", words)]));
  if (at("examples").dataset.of !== status.digest + status.swaps) {
    at("examples").dataset.of = status.digest + status.swaps;
    at("examples").replaceChildren(...status.examples.map((words) =>
      make("button", { type: "button", dir: "auto", textContent: words, onclick: () => { query.value = words; fit(); submit(); query.focus(); } })));
  }
  const try_it = status.examples.find((words) => /^[\w .,-]+$/.test(words)) || "your query", most = status.most_queries;
  at("curl").textContent = [`curl --get ${location.origin}/lookup --data-urlencode 'q=${try_it}'`,
    `curl ${location.origin}/lookup --json '{"queries": ["${try_it}", "..."]}'`].join("\n");
  at("most").textContent = figure.format(most);
}

async function refresh() {
  try {
    status = await read("/status");
    options = status.options;
    show();
  } catch (error) {
    at("state").textContent = "the server does not answer";
    at("state").className = "state bad";
  }
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
query.addEventListener("input", fit);
query.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target === query || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  query.focus();
  query.select();
});
setInterval(() => document.hidden || refresh(), 5000);

refresh().then(() => {
  const asked = new URLSearchParams(location.search).get("q");
  if (!asked) return;
  query.value = asked;
  ask([asked], true);  // whoever wrote a link may look up here, but not set the model to work
});
