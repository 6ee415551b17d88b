// One analysis: progress, curves and the preliminary report while it runs; then its report.

import { call, follow, Problem } from "./api.js";
import { ago, duration, h, lines, say, when } from "./dom.js";

const KEPT_POINTS = 600;
const SHOWN_AFTER_MS = 300;
const QUEUE_EVERY_MS = 5000;
const FINAL = ["succeeded", "failed", "cancelled"];

export async function job(view, signal, id) {
  const analysis = await call("GET", `/v1/analyses/${encodeURIComponent(id)}`);
  document.title = `${analysis.name} · layerdrift`;
  if (analysis.status === "succeeded") {
    await finished(view, analysis);
  } else {
    await running(view, signal, analysis);
  }
}

// Of a report that an earlier version of the engine made: says so, and offers to make it again.
function older(analysis) {
  if (!analysis.older_engine) {
    return "";
  }
  const error = h("span", { class: "error", role: "alert" });
  const again = h("button", { type: "button", class: "plain", onclick: rerun }, "Run again");

  async function rerun() {
    again.disabled = true;
    try {
      const made = await call("POST", `/v1/analyses/${analysis.id}/rerun`);
      location.hash = `#/a/${made.id}`;
    } catch (problem) {
      again.disabled = false;
      error.textContent = problem.message;
    }
  }

  return h("div", { class: "row" }, `Version ${analysis.engine} of the engine made this report.`, again, error);
}

async function running(view, signal, analysis) {
  const id = analysis.id;
  const status = h("span", { class: `status ${analysis.status}`, id: "status" }, analysis.status);
  const progress = overall(analysis);
  const log = h("pre", { class: "log", role: "log", tabindex: 0, "aria-label": "Log" });
  const plots = curves();
  const early = h("div", { id: "preliminary" });
  const error = h("p", { class: "error", role: "alert" });
  const cancel = h("button", { type: "button", class: "plain", onclick: stop }, "Cancel");
  let shownReport = false;

  async function stop() {
    cancel.disabled = true;
    try {
      await call("POST", `/v1/analyses/${id}/cancel`);
      say("cancelling");
    } catch (problem) {
      error.textContent = problem.message;
    }
  }

  function told(line) {
    log.append(`${new Date().toLocaleTimeString()} ${line}\n`);
    log.scrollTop = log.scrollHeight;
  }

  async function showReport() {
    if (shownReport) {
      return;
    }
    shownReport = true;
    try {
      const page = await call("GET", `/v1/analyses/${id}/report`, undefined, "text/html");
      early.replaceChildren(h("h2", {}, "Preliminary report"), framed(page, `Preliminary report of ${analysis.name}`));
      say("the preliminary report is there");
    } catch (problem) {
      shownReport = false; // it has ended meanwhile, and the whole report follows
    }
  }

  function ended(found) {
    status.textContent = found.status;
    status.className = `status ${found.status}`;
    const final = FINAL.includes(found.status);
    cancel.hidden = final;
    progress.left.hidden = final;
    if (found.error) {
      const where = found.error.stage ? ` in stage ${found.error.stage}` : "";
      error.textContent = `${found.error.title}${where}: ${found.error.detail}`;
    }
    if (final && found.status !== "succeeded") {
      early.replaceChildren();
    }
  }

  view.append(
    heading(analysis),
    h("p", { class: "soft" }, status, ` · created ${when(analysis.created_at)} · ${id}`),
    error,
    h("div", { class: "card" }, progress.whole),
    h("div", { class: "row" }, cancel),
    early,
    plots.whole,
    h("details", {}, h("summary", {}, "Log"), log),
  );
  ended(analysis);
  if (analysis.report === "preliminary") {
    showReport();
  }
  watchQueue(analysis, progress, signal);

  const connection = document.getElementById("connection");
  await follow(
    `/v1/analyses/${id}/events`,
    {
      event(name, data) {
        if (name === "stage") {
          if (progress.unknown()) {
            call("GET", `/v1/analyses/${id}`).then((found) => found.progress.stages.forEach(progress.stage));
          }
          progress.stage(data);
          told(`${data.name} ${data.status}`);
          if (status.textContent === "queued") {
            ended({ status: "running" });
          }
        } else if (name === "progress" && data.stage) {
          progress.now(data);
          plots.add(data.numbers);
        } else if (name === "report") {
          showReport();
        } else if (name === "log") {
          told(data.message);
        } else if (name === "done") {
          told(data.status);
          ended(data);
          say(`the analysis has ${data.status}`);
        }
      },
      lost() {
        connection.textContent = "The connection is lost; trying again. The analysis keeps running.";
        connection.hidden = false;
      },
      back() {
        connection.hidden = true;
        say("connected again");
      },
    },
    signal,
  );
  if (signal.aborted) {
    return;
  }
  const last = await call("GET", `/v1/analyses/${id}`);
  if (last.status === "succeeded") {
    view.replaceChildren();
    await finished(view, last);
  } else {
    ended(last);
  }
}

function heading(analysis) {
  const under = analysis.compared !== analysis.name ? h("p", { class: "soft compared" }, analysis.compared) : null;
  return h("div", {}, h("h1", {}, analysis.name), under);
}

// The bar of the whole, what is left, and a line for every stage, also those to come.
function overall(analysis) {
  const bar = h("progress", { max: 1, value: analysis.progress.fraction, "aria-label": "whole analysis" });
  const left = h("p", { class: "soft", id: "left" });
  const stages = h("ol", { class: "stages" });
  const known = new Map();

  function line(name) {
    if (!known.has(name)) {
      const own = h("progress", { max: 1, value: 0, "aria-label": name });
      const parts = { bar: own, percent: h("span", { class: "number" }), detail: h("span", { class: "soft" }) };
      known.set(name, parts);
      parts.item = h("li", {}, h("span", {}, name), own, parts.percent, parts.detail);
      stages.append(parts.item);
    }
    return known.get(name);
  }

  function stage(found) {
    const parts = line(found.name);
    parts.item.className = found.status;
    parts.bar.value = found.fraction;
    parts.percent.textContent = found.status === "pending" ? "" : `${Math.round(100 * found.fraction)} %`;
    const took = found.started_at && found.finished_at ? duration((new Date(found.finished_at) - new Date(found.started_at)) / 1000) : "";
    parts.detail.textContent = found.status === "running" ? (found.detail ?? "") : found.status === "pending" ? "pending" : took;
  }

  function remaining(seconds) {
    left.textContent = seconds === null || seconds === undefined ? "" : `about ${duration(seconds)} left`;
  }

  function now(data) {
    bar.value = data.fraction;
    remaining(data.seconds_left);
    if (!FINAL.includes(line(data.stage).item.className)) { // the last news of a stage follows its end
      stage({ name: data.stage, status: "running", fraction: data.stage_fraction, detail: data.detail });
    }
  }

  for (const one of analysis.progress.stages) {
    stage(one);
  }
  remaining(analysis.progress.seconds_left);
  const waiting = h("p", { class: "soft", id: "waiting", hidden: analysis.status !== "queued" }, queued(analysis));
  return { whole: h("div", {}, waiting, bar, left, stages), bar, left, waiting, unknown: () => known.size === 0, stage(found) { waiting.hidden = true; stage(found); }, now(data) { waiting.hidden = true; now(data); } };
}

function queued(analysis) {
  const before = analysis.queued_before ?? 0;
  return before ? `Queued: ${before} ${before === 1 ? "analysis" : "analyses"} ahead.` : "Queued: next in line, waiting for a free worker.";
}

function watchQueue(analysis, progress, signal) {
  if (analysis.status !== "queued") {
    return;
  }
  const timer = setInterval(async () => {
    if (progress.waiting.hidden) {
      clearInterval(timer);
      return;
    }
    try {
      progress.waiting.textContent = queued(await call("GET", `/v1/analyses/${analysis.id}`));
    } catch {
      return; // the next look may come through
    }
  }, QUEUE_EVERY_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
}

// Loss and unexplained variance as trainings report them.
function curves() {
  const whole = h("div");
  const points = { loss: [], fvu_lowest: [], fvu_highest: [] };
  let drawn = 0;

  function add(numbers) {
    for (const name of Object.keys(points)) {
      if (name in (numbers ?? {})) {
        const before = points[name].at(-1);
        if (before && before[0] > numbers.step) {
          points[name].length = 0; // another run began
        }
        points[name].push([numbers.step, numbers[name]]);
        if (points[name].length > KEPT_POINTS) {
          points[name].splice(1, 1);
        }
      }
    }
    if (performance.now() - drawn < SHOWN_AFTER_MS) {
      return;
    }
    drawn = performance.now();
    const shown = [];
    if (points.loss.length > 1) {
      const series = [{ name: "loss", colour: "var(--accent)", points: points.loss }];
      shown.push(h("h2", {}, "Fine-tune"), lines({ series, label: "Loss by step", xTitle: "optimiser step", yTitle: "cross-entropy, nats" }));
    }
    if (points.fvu_lowest.length > 1) {
      const series = [
        { name: "best autoencoder", colour: "var(--general)", points: points.fvu_lowest },
        { name: "worst autoencoder", colour: "var(--specialised)", dash: "6 4", points: points.fvu_highest },
      ];
      shown.push(h("h2", {}, "Sparse autoencoders"), lines({ series, label: "Unexplained variance by step", xTitle: "step", yTitle: "unexplained variance (FVU)" }));
    }
    whole.replaceChildren(...shown);
  }

  return { whole, add };
}

// A report in a frame of its own, which has no way to the API.
export function framed(page, title) {
  const frame = h("iframe", { class: "report", title, sandbox: "allow-scripts allow-downloads allow-popups", src: "/static/web/frame.html" });
  addEventListener("message", function heard(event) {
    const inside = frame.contentWindow; // null once another page is shown
    if (inside !== null && event.source === inside && event.data === "ready") {
      inside.postMessage(page, "*");
    }
  });
  return frame;
}

const VERDICTS = { pass: "✓ starter policy: passed", warn: "! starter policy: passed with warnings", fail: "✗ starter policy: failed" };

async function finished(view, analysis) {
  const id = analysis.id;
  document.body.className = "reading";
  const page = await call("GET", `/v1/analyses/${id}/report`, undefined, "text/html");
  const files = h("div", { role: "status" });
  const verdict = analysis.verdict ? h("span", { class: `verdict ${analysis.verdict}` }, VERDICTS[analysis.verdict]) : h("span", { class: "verdict" }, "starter policy: could not be evaluated");
  const took = duration((new Date(analysis.finished_at) - new Date(analysis.started_at)) / 1000);
  const by = analysis.submitted_by ? ` by ${analysis.submitted_by}` : "";
  view.append(
    heading(analysis),
    h("p", { class: "soft" }, verdict, " ", h("span", { class: "status succeeded" }, analysis.status), ` in ${took}, ${ago(analysis.finished_at)} (${when(analysis.finished_at)})${by} · ${id}`),
    older(analysis),
    h(
      "div",
      { class: "row" },
      save("HTML", page, `${id}.html`, "text/html"),
      fetched("JSON", `/v1/analyses/${id}/report`, "application/json", `${id}.json`),
      fetched("Markdown", `/v1/analyses/${id}/report`, "text/markdown", `${id}.md`),
      h("a", { class: "button plain", href: `#/a/${id}/inspect` }, "Inspect texts"),
      h("button", { type: "button", class: "plain", onclick: () => artifacts(files, id) }, "Files"),
      h("button", { type: "button", class: "plain danger", onclick: () => remove(files, analysis) }, "Delete"),
    ),
    files,
    framed(page, `Report of ${analysis.name}`),
  );
}

export function save(title, text, name, type) {
  const link = h("a", { class: "button plain", download: name }, title);
  link.href = URL.createObjectURL(new Blob([text], { type }));
  return link;
}

export function fetched(title, path, accept, name) {
  return h("button", {
    type: "button", class: "plain",
    onclick: async () => {
      const body = await call("GET", path, undefined, accept);
      save(title, typeof body === "string" ? body : JSON.stringify(body, null, 1), name, accept).click();
    },
  }, title);
}

async function artifacts(target, id) {
  await shown(target, async () => {
    const found = await call("GET", `/v1/analyses/${id}/artifacts`);
    target.replaceChildren(
      h("ul", {}, found.items.map((one) => h("li", {}, h("a", { href: one.url, rel: "noopener" }, one.name), ` (${size(one.bytes)})`))),
      h("button", { type: "button", class: "plain", onclick: () => target.replaceChildren() }, "Hide files"),
    );
  });
}

async function remove(target, analysis) {
  if (!confirm(`Delete “${analysis.name}” with its report, files and checkpoint? This cannot be undone.`)) {
    return;
  }
  await shown(target, async () => {
    await call("DELETE", `/v1/analyses/${analysis.id}`);
    say("deleted");
    location.hash = "#/";
  });
}

// Does something; what goes wrong is said in its place.
export async function shown(target, action) {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Problem)) {
      throw error;
    }
    target.replaceChildren(h("p", { class: "error" }, error.message));
  }
}

function size(bytes) {
  const [unit, name] = bytes >= 1e6 ? [1e6, "MB"] : bytes >= 1e3 ? [1e3, "kB"] : [1, "bytes"];
  return `${(bytes / unit).toFixed(unit === 1 ? 0 : 1)} ${name}`;
}
