"use strict";
const AT_ONCE = 3; // requests under way; the server says when it has enough (429)
const HOW = {
  leave_one_out: "in nats: the label's log-probability with all aspects, less that without this one",
  shapley: "in nats: this aspect's share of the label's log-probability, over every set of aspects (Shapley)",
  concept_bottleneck: "in nats: what this aspect, or the whole image beside them, adds to the label's logit",
};
const WHOLE_IMAGE = "image"; // what an answer calls the image as a whole where that decided
const MOST = 100; // images on the page
const byId = (id) => document.getElementById(id);
const results = []; // {file, url, answer, node}
let waiting = [];
let running = 0;

const words = (name) => name.replaceAll("_", " ");
const percent = (share) => (100 * share).toFixed(1) + " %";
const make = (tag, text, className) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
};
const say = (text) => { byId("status").textContent = text; };
const headers = () => (byId("token").value ? { "X-API-Key": byId("token").value } : {});
const labels = () => byId("labels").value.split(",").map((one) => one.trim()).filter(Boolean);
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

function form(files, options) {
  const data = new FormData();
  for (const file of files) data.append("images", file, file.name || "pasted.png");
  if (byId("task").value) data.append("task", byId("task").value);
  for (const label of labels()) data.append("labels", label);
  for (const [name, value] of Object.entries(options)) data.append(name, value);
  return data;
}

async function send(path, files, options) {
  for (let attempt = 0; ; attempt += 1) {
    const answer = await fetch(path, { method: "POST", body: form(files, options), headers: headers() });
    if ((answer.status === 429 || answer.status === 503) && attempt < 5) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      say(`The server is busy; trying again in ${seconds} s.`);
      await pause(seconds);
      continue;
    }
    if (answer.ok) return answer;
    if (answer.status === 401) byId("token-line").hidden = false;
    const body = await answer.json().catch(() => null);
    throw new Error(body?.error?.message ?? `the server answered ${answer.status}`);
  }
}

function add(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || file.type === "");
  if (!images.length) { say("There was no image in that."); return; }
  const room = Math.max(0, MOST - results.length);
  if (images.length > room) say(`Only the first ${room} are taken; clear the page for more.`);
  for (const file of images.slice(0, room)) {
    const one = { file, url: URL.createObjectURL(file), answer: null, error: null, node: null };
    results.push(one);
    show(one);
    waiting.push(one);
  }
  byId("actions").hidden = false;
  work();
}

function work() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    predict(waiting.shift()).finally(() => { running -= 1; work(); report(); });
  }
}

function report() {
  const done = results.filter((one) => one.answer || one.error).length;
  const failed = results.filter((one) => one.error).length;
  if (!results.length) return;
  say(`${done} of ${results.length} images answered${failed ? `, ${failed} failed` : ""}.`);
}

async function predict(one) {
  try {
    const answer = await send("v1/predict", [one.file], { explain: "full", heatmaps: "true" });
    one.answer = (await answer.json()).predictions[0];
  } catch (error) {
    one.error = error instanceof TypeError ? "The server cannot be reached." : error.message;
  }
  if (results.includes(one)) show(one);
}

function signed(effect) {
  return `${effect >= 0 ? "+" : "−"}${Math.abs(effect).toFixed(2)}`;
}

function verdict(answer) {
  if (!Object.keys(answer.aspects).length) return "This task has no aspects, so there are no reasons.";
  const whole = answer.image_effect;
  const name = answer.deciding_cue;
  if (name === null) return "No single cue decided.";
  if (name === WHOLE_IMAGE) {
    return `The image as a whole did most for the label (${signed(whole)} nats), more than any single cue.`;
  }
  const seen = answer.aspects[name];
  const beside = whole == null ? "" : `, ${signed(seen.effect)} nats beside ${signed(whole)} by the image as a whole`;
  const decided = `The ${words(name)} decided${seen.answer ? ` (“${readable(seen.answer)}”)` : ""}`;
  if (answer.attribution !== "leave_one_out") return `${decided}: it did most for the label${beside}.`;
  const factor = Math.exp(seen.effect);
  const less = factor > 100 ? "more than 100 times" : factor >= 2 ? `${factor.toFixed(1)} times` : `${(100 * (1 - 1 / factor)).toFixed(0)} %`;
  return `${decided}: without it the label would be ${less} less probable.`;
}

function readable(text) {
  const signs = [...text];
  return signs.length <= 60 ? text : `${signs.slice(0, 59).join("")}…`;
}

function show(one) {
  const node = byId("result-template").content.firstElementChild.cloneNode(true);
  const find = (selector) => node.querySelector(selector);
  find(".image").src = one.url;
  find(".image").addEventListener("error", () => { find(".frame").hidden = true; });
  find("figcaption").textContent = one.file.name || "pasted image";
  find(".chosen").addEventListener("change", chosen);
  find(".chosen").setAttribute("aria-label", `compare ${one.file.name || "pasted image"}`);
  const answer = one.answer;
  if (!answer) {
    find(".label").textContent = one.error ? "No answer" : "Reading …";
    find(".verdict").textContent = one.error ?? "";
    find(".image").alt = one.file.name || "pasted image";
    find(".bars").hidden = find(".pick").hidden = true;
    node.classList.toggle("failed", Boolean(one.error));
  } else {
    const ranked = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
    find(".label").textContent = `${answer.label} ${percent(answer.probabilities[answer.label])}`;
    find(".image").alt = `The image ${one.file.name || "pasted"}`;
    find(".verdict").textContent = verdict(answer);
    if (answer.domain && !answer.domain.inside) {
      find(".warning").hidden = false;
      find(".warning").textContent = `This backbone knows ${answer.domain.knows} only, and this is none: what it says here means nothing.`;
    }
    for (const [label, share] of ranked) find("tbody").append(bar(label, share, label === answer.label));
    drawAspects(one, node);
  }
  if (one.node) one.node.replaceWith(node);
  else byId("list").append(node);
  one.node = node;
}

function bar(label, share, first) {
  const row = make("tr", undefined, first ? "first" : "");
  const name = make("th", label);
  name.scope = "row";
  const cell = make("td");
  cell.setAttribute("aria-hidden", "true");
  const track = make("span", undefined, "track");
  const fill = make("span", undefined, "fill");
  fill.style.width = `${(100 * share).toFixed(2)}%`;
  track.append(fill);
  cell.append(track);
  row.append(name, cell, make("td", percent(share)));
  return row;
}

function drawAspects(one, node) {
  const drawn = Object.entries(one.answer.aspects);
  if (!drawn.length) return;
  const box = node.querySelector(".aspects");
  const veil = node.querySelector(".veil");
  box.hidden = false;
  for (const [name, seen] of drawn) {
    const button = make("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.append(make("strong", words(name)), make("small", seen.answer || "(nothing)"));
    addEffect(button, one.answer, name, seen.effect);
    button.disabled = !seen.heatmap;
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") === "false";
      for (const other of box.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(on));
      veil.hidden = !on;
      if (on) {
        veil.src = `data:image/png;base64,${seen.heatmap}`;
        veil.alt = `Heatmap of ${words(name)}: ${peak(seen.attention)}`;
      }
    });
    box.querySelector(".buttons").append(button);
  }
  if (one.answer.image_effect === null) return;
  const whole = make("p", undefined, "whole");
  whole.append(make("strong", "whole image"), make("small", "what no aspect shows"));
  addEffect(whole, one.answer, WHOLE_IMAGE, one.answer.image_effect);
  box.querySelector(".buttons").append(whole);
}

function addEffect(node, answer, name, nats) {
  const effect = make("small", `effect ${signed(nats)}`);
  effect.title = HOW[answer.attribution] || "";
  node.append(effect);
  if (name !== answer.deciding_cue) return;
  node.classList.add("decided");
  node.append(make("small", "decided"));
}

function peak(attention) {
  let best = [0, 0];
  attention.forEach((row, r) => row.forEach((value, c) => { if (value > attention[best[0]][best[1]]) best = [r, c]; }));
  return `strongest in row ${best[0] + 1} of ${attention.length}, column ${best[1] + 1} of ${attention[0].length}`;
}

const picked = () => results.filter((one) => one.answer && one.node.querySelector(".chosen").checked);

function chosen() {
  byId("compare").disabled = picked().length !== 2;
}

function compare() {
  const [left, right] = picked();
  const box = byId("comparison");
  const title = make("h2", "Two images compared");
  title.id = "comparison-title";
  const pair = make("div", undefined, "pair");
  for (const one of [left, right]) {
    const figure = make("figure");
    const image = make("img");
    image.src = one.url;
    image.alt = `The image ${one.file.name || "pasted"}`;
    figure.append(image, make("figcaption", `${one.file.name || "pasted"}: ${one.answer.label}`));
    pair.append(figure);
  }
  const table = make("table", undefined, "compared");
  table.append(make("caption", "Probabilities, and how the second differs in percentage points"));
  const head = table.createTHead().insertRow();
  for (const name of ["label", "first", "second", "difference"]) {
    const cell = make("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  const names = new Set([...Object.keys(left.answer.probabilities), ...Object.keys(right.answer.probabilities)]);
  for (const label of names) {
    const [a, b] = [left, right].map((one) => one.answer.probabilities[label]);
    const row = body.insertRow();
    const name = make("th", label);
    name.scope = "row";
    const both = a !== undefined && b !== undefined;
    const change = both ? `${b - a < 0 ? "−" : "+"}${Math.abs(100 * (b - a)).toFixed(1)}` : "–";
    row.append(name, ...[a, b].map((value) => make("td", value === undefined ? "–" : percent(value))), make("td", change));
  }
  const scroll = make("div", undefined, "scroll");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Table of probabilities");
  scroll.append(table);
  box.replaceChildren(title, pair, scroll);
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
}

function download(content, type, name) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function saveJson() {
  const found = results.map((one) => one.answer ?? { image: one.file.name, error: one.error ?? "not answered" });
  const bare = (key, value) => (key === "heatmap" ? undefined : value);
  download(JSON.stringify(found, bare, 1), "application/json", "masp.json");
}

async function saveReport() {
  const files = results.filter((one) => one.answer).map((one) => one.file);
  const most = Number(byId("limits").dataset.images) || 16;
  if (!files.length) { say("There is no answer to report."); return; }
  say("Writing the report …");
  try {
    const answer = await send("v1/report", files.slice(0, most), { explain: "full" });
    download(await answer.text(), "text/html", "masp.html");
    say(files.length > most ? `The report has the first ${most} images.` : "The report is downloaded.");
  } catch (error) {
    say(`No report: ${error.message}`);
  }
}

function clear() {
  for (const one of results) { URL.revokeObjectURL(one.url); one.node.remove(); }
  results.length = 0;
  waiting = [];
  byId("comparison").hidden = byId("actions").hidden = true;
  byId("compare").disabled = true;
  say("");
}

function code() {
  const origin = location.origin;
  const token = byId("token-line").hidden ? "" : ' -H "X-API-Key: $MASP_SERVE_TOKEN"';
  const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
  const python = (text) => JSON.stringify(text);
  const task = byId("task").value;
  const several = byId("task").options.length > 1;
  const own = labels();
  byId("curl").textContent = `curl -F images=@photo.jpg${several ? ` -F task=${quoted(task)}` : ""}` +
    `${own.map((label) => ` -F labels=${quoted(label)}`).join("")} -F explain=words${token} ${origin}/v1/predict`;
  byId("python").textContent = "from masp.serving import Client\n" +
    `print(Client(${python(origin)}${token ? ', token="…"' : ""}).predict("photo.jpg"${several ? `, task=${python(task)}` : ""}` +
    `${own.length ? `, labels=${python(own)}` : ""}, explain="words"))`;
}

async function tasks() {
  try {
    const answers = await Promise.all(["v1/tasks", "v1/info"].map((path) => fetch(path, { headers: headers() })));
    if (answers.some((answer) => answer.status === 401)) {
      byId("token-line").hidden = false;
      say("This server asks for a token.");
      code();
      return;
    }
    if (answers.some((answer) => answer.status === 503)) {
      say("The model is being loaded …");
      setTimeout(tasks, 2000);
      return;
    }
    const [found, info] = await Promise.all(answers.map((answer) => answer.json()));
    byId("task").replaceChildren(...found.tasks.map((task) => {
      const option = make("option", `${task.name} (${task.labels.join(", ")})`);
      option.value = task.name;
      option.selected = task.default;
      return option;
    }));
    byId("limits").textContent = `${info.formats.join(", ")}; up to ${info.limits.body_mib} MiB each.`;
    byId("limits").dataset.images = info.limits.images;
    say("");
  } catch {
    say("The server cannot be reached.");
  }
  code();
}

for (const id of ["files", "camera"]) {
  byId(id).addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
}
byId("ask").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) add(event.clipboardData.files); });
byId("compare").addEventListener("click", compare);
byId("save-json").addEventListener("click", saveJson);
byId("save-report").addEventListener("click", saveReport);
byId("clear").addEventListener("click", clear);
byId("token").addEventListener("change", tasks);
for (const id of ["task", "labels"]) byId(id).addEventListener("input", code);
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => {
    navigator.clipboard?.writeText(byId(button.dataset.copy).textContent).then(() => say("Copied."), () => say("Copying is not allowed here."));
  });
}
tasks();
