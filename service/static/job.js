// One analysis: while it runs its stages, curves and log; then its report.

import { call, follow, Problem } from "./api.js";
import { h, lines, say, when } from "./dom.js";

const KEPT_POINTS = 600;
const SHOWN_AFTER_MS = 300;

export async function job(view, signal, id) {
  const analysis = await call("GET", `/v1/analyses/${id}`);
  document.title = `${analysis.name || id} · layerdrift`;
  if (analysis.status === "succeeded") {
    await finished(view, analysis);
  } else {
    await running(view, signal, analysis);
  }
}

async function running(view, signal, analysis) {
  const id = analysis.id;
  const status = h("span", { class: `status ${analysis.status}`, id: "status" }, analysis.status);
  const stages = h("ol", { class: "stages" });
  const log = h("pre", { class: "log", role: "log", tabindex: 0, "aria-label": "Log" });
  const curves = h("div");
  const error = h("p", { class: "error", role: "alert" });
  const cancel = h("button", { type: "button", class: "plain", onclick: stop }, "Cancel");
  const known = new Map();
  const points = { loss: [], fvu_lowest: [], fvu_highest: [] };
  let drawn = 0;

  async function stop() {
    cancel.disabled = true;
    try {
      await call("POST", `/v1/analyses/${id}/cancel`);
      say("cancelling");
    } catch (problem) {
      error.textContent = problem.message;
    }
  }

  function stage(found) {
    let line = known.get(found.name);
    if (!line) {
      const bar = h("progress", { max: 1, value: 0, "aria-label": found.name });
      line = { bar, percent: h("span", { class: "number" }), detail: h("span", { class: "soft" }) };
      known.set(found.name, line);
      stages.append(h("li", {}, h("span", {}, found.name), bar, line.percent, line.detail));
    }
    line.bar.value = found.fraction;
    line.percent.textContent = found.status === "pending" ? "" : `${Math.round(100 * found.fraction)} %`;
    line.detail.textContent = found.detail ?? "";
  }

  function curve(numbers) {
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
    curves.replaceChildren(...shown);
  }

  function told(line) {
    log.append(`${new Date().toLocaleTimeString()} ${line}\n`);
    log.scrollTop = log.scrollHeight;
  }

  view.append(
    h("h1", {}, analysis.name || id),
    h("p", { class: "soft" }, status, ` · ${id} · created ${when(analysis.created_at)}`),
    error,
    h("div", { class: "card" }, stages, analysis.status === "queued" && !analysis.progress.stages.length ? h("p", { class: "soft", id: "waiting" }, "Waiting for a worker.") : null),
    h("div", { class: "row" }, cancel),
    curves,
    h("h2", {}, "Log"),
    log,
  );
  for (const one of analysis.progress.stages) {
    stage(one);
  }
  ended(analysis);

  function ended(found) {
    status.textContent = found.status;
    status.className = `status ${found.status}`;
    const final = ["succeeded", "failed", "cancelled"].includes(found.status);
    cancel.hidden = final;
    if (found.error) {
      const where = found.error.stage ? ` in stage ${found.error.stage}` : "";
      error.textContent = `${found.error.title}${where}: ${found.error.detail}`;
    }
    return final;
  }

  const connection = document.getElementById("connection");
  await follow(
    `/v1/analyses/${id}/events`,
    {
      event(name, data) {
        document.getElementById("waiting")?.remove();
        if (name === "stage") {
          stage(data);
          told(`${data.name} ${data.status}`);
          if (status.textContent === "queued") {
            ended({ status: "running" });
          }
        } else if (name === "progress" && data.stage) {
          stage({ name: data.stage, status: "running", fraction: data.stage_fraction, detail: data.detail });
          curve(data.numbers);
        } else if (name === "log") {
          told(data.message);
        } else if (name === "done") {
          told(data.status);
          ended(data);
          say(`the analysis has ${data.status}`);
        }
      },
      lost() {
        connection.textContent = "The connection is lost; trying again. The analysis goes on.";
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

async function finished(view, analysis) {
  const id = analysis.id;
  const page = await call("GET", `/v1/analyses/${id}/report`, undefined, "text/html");
  const frame = h("iframe", { class: "report", title: `Report of ${analysis.name || id}`, sandbox: "allow-scripts allow-downloads allow-popups", src: "/static/web/frame.html" });
  addEventListener("message", function ready(event) {
    if (event.source === frame.contentWindow && event.data === "ready") {
      removeEventListener("message", ready);
      frame.contentWindow.postMessage(page, "*");
    }
  });
  const verdict = h("div", { role: "status" });
  view.append(
    h("h1", {}, analysis.name || id),
    h("p", { class: "soft" }, h("span", { class: "status succeeded" }, analysis.status), ` · ${id} · ${when(analysis.finished_at)}`),
    h(
      "div",
      { class: "row" },
      save("HTML", page, `${id}.html`, "text/html"),
      fetched("JSON", id, "application/json", `${id}.json`),
      fetched("Markdown", id, "text/markdown", `${id}.md`),
      h("a", { class: "button plain", href: `#/a/${id}/inspect` }, "Inspect texts"),
      h("button", { type: "button", class: "plain", onclick: () => artifacts(verdict, id) }, "Files"),
    ),
    verdict,
    frame,
  );
}

function save(title, text, name, type) {
  const link = h("a", { class: "button plain", download: name }, title);
  link.href = URL.createObjectURL(new Blob([text], { type }));
  return link;
}

function fetched(title, id, accept, name) {
  return h("button", {
    type: "button", class: "plain",
    onclick: async () => {
      const body = await call("GET", `/v1/analyses/${id}/report`, undefined, accept);
      save(title, typeof body === "string" ? body : JSON.stringify(body, null, 1), name, accept).click();
    },
  }, title);
}

async function artifacts(target, id) {
  try {
    const found = await call("GET", `/v1/analyses/${id}/artifacts`);
    target.replaceChildren(
      h("ul", {}, found.items.map((one) => h("li", {}, h("a", { href: one.url, rel: "noopener" }, one.name), ` (${(one.bytes / 1e6).toFixed(2)} MB)`))),
    );
  } catch (error) {
    if (!(error instanceof Problem)) {
      throw error;
    }
    target.replaceChildren(h("p", { class: "error" }, error.message));
  }
}
