// Studies: the list, a new one, and one with its members until its report is there.

import { call, follow, Problem } from "./api.js";
import { ago, h, say, when } from "./dom.js";
import { fetched, framed, save, shown } from "./job.js";

const FINAL = ["succeeded", "failed", "cancelled"];
const PAGE = 50;

const EXAMPLE = {
  name: "reviews and spam",
  base: { uri: "s3://models/base/" },
  finetune: { epochs: 2 },
  analysis: { sae: null },
  members: [
    { name: "reviews-0", task: "reviews", seed: 0, dataset: { uri: "s3://data/reviews.csv" } },
    { name: "reviews-1", task: "reviews", seed: 1, dataset: { uri: "s3://data/reviews.csv" } },
    { name: "spam-0", task: "spam", seed: 0, dataset: { uri: "s3://data/spam.csv" } },
    { name: "spam-1", task: "spam", seed: 1, dataset: { uri: "s3://data/spam.csv" } },
  ],
};

/** Members and trials of adapters: all that a study waits for. */
function awaited(study) {
  return [...study.members, ...study.trials];
}

function counted(study) {
  const counts = new Map();
  awaited(study).forEach((one) => counts.set(one.status, (counts.get(one.status) ?? 0) + 1));
  return [...counts].map(([status, count]) => `${count} ${status}`).join(", ");
}

export async function studies(view) {
  const body = h("tbody");
  const count = h("p", { class: "soft", role: "status" });
  const more = h("button", { type: "button", class: "plain", hidden: true }, "More");
  let cursor = null;

  async function read() {
    const query = new URLSearchParams(cursor ? { limit: PAGE, cursor } : { limit: PAGE });
    const found = await call("GET", `/v1/studies?${query}`);
    cursor = found.next_cursor;
    more.hidden = cursor === null;
    body.append(...found.items.map(row));
    count.textContent = body.children.length ? "" : "No studies yet. A study compares many fine-tunes of one base model.";
  }

  more.addEventListener("click", () => shown(count, read));
  await read();
  view.append(
    h("h1", {}, "Studies"),
    h("div", { class: "row" }, h("a", { class: "button", href: "#/studies/new" }, "New study")),
    count,
    h("div", { class: "scroll" }, h("table", { class: "list" }, h("thead", {}, h("tr", {}, ["Study", "Status", "Members", "Created"].map((one) => h("th", { scope: "col" }, one)))), body)),
    more,
  );
}

function row(one) {
  return h(
    "tr",
    {},
    h("td", { class: "title" }, h("a", { class: "name", href: `#/s/${one.id}` }, one.name)),
    h("td", {}, h("span", { class: `status ${one.status}` }, one.status)),
    h("td", {}, counted(one)),
    h("td", { class: "soft" }, h("span", { title: when(one.created_at) }, ago(one.created_at))),
  );
}

export async function newStudy(view) {
  const text = h("textarea", { id: "study", rows: 24, spellcheck: "false" });
  text.value = JSON.stringify(EXAMPLE, null, 2);
  const errors = h("ul", { class: "error", role: "alert" });
  const button = h("button", { type: "submit" }, "Submit");
  const form = h(
    "form",
    {
      onsubmit: async (event) => {
        event.preventDefault();
        errors.replaceChildren();
        let body;
        try {
          body = JSON.parse(text.value);
        } catch (problem) {
          errors.append(h("li", {}, `this is not JSON: ${problem.message}`));
          return;
        }
        button.disabled = true;
        try {
          const made = await call("POST", "/v1/studies", body);
          say("submitted");
          location.hash = `#/s/${made.id}`;
        } catch (problem) {
          if (!(problem instanceof Problem)) {
            throw problem;
          }
          const found = problem.errors.length ? problem.errors.map((one) => `${one.pointer || "the study"}: ${one.detail}`) : [problem.message];
          errors.append(...found.map((one) => h("li", {}, one)));
        } finally {
          button.disabled = false;
        }
      },
    },
    h("label", { for: "study" }, "Study, as JSON", text),
    errors,
    button,
  );
  view.append(h("h1", {}, "New study"), h("p", { class: "soft" }, "One base model and up to 50 fine-tunes of it: checkpoints, or how to create them. From the command line: layerdrift study run study.yaml"), form);
}

export async function study(view, signal, id) {
  const found = await call("GET", `/v1/studies/${encodeURIComponent(id)}`);
  document.title = `${found.name} · layerdrift`;
  await (found.status === "succeeded" ? finished(view, found) : running(view, signal, found));
}

async function running(view, signal, found) {
  const id = found.id;
  const status = h("span", { class: "status", id: "status" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": "whole study" });
  const body = h("tbody");
  const error = h("p", { class: "error", role: "alert" });
  const cancel = h("button", { type: "button", class: "plain", onclick: () => shown(error, () => call("POST", `/v1/studies/${id}/cancel`)) }, "Cancel");
  const again = h("p", { class: "soft" });

  function draw(one) {
    status.textContent = one.status;
    status.className = `status ${one.status}`;
    bar.value = one.fraction;
    cancel.hidden = FINAL.includes(one.status);
    error.textContent = one.error ? `${one.error.title}: ${one.error.detail}` : "";
    body.replaceChildren(...awaited(one).map(member));
    again.textContent = counted(one);
  }

  view.append(
    h("h1", {}, found.name),
    h("p", { class: "soft" }, status, ` · created ${when(found.created_at)} · ${id}`),
    error,
    h("div", { class: "card" }, bar, again),
    h("div", { class: "row" }, cancel),
    members(body),
  );
  draw(found);
  const connection = document.getElementById("connection");
  await follow(
    `/v1/studies/${id}/events`,
    {
      event: (name, data) => name === "study" && draw(data),
      lost() {
        connection.textContent = "The connection is lost; trying again. The study keeps running.";
        connection.hidden = false;
      },
      back: () => (connection.hidden = true),
    },
    signal,
  );
  if (signal.aborted) {
    return;
  }
  const last = await call("GET", `/v1/studies/${id}`);
  say(`the study has ${last.status}`);
  if (last.status === "succeeded") {
    view.replaceChildren();
    await finished(view, last);
  } else {
    draw(last);
  }
}

function members(body) {
  return h("div", { class: "scroll" }, h("table", { class: "list" }, h("thead", {}, h("tr", {}, ["Member", "Task", "Status", "Done", "Verdict"].map((one) => h("th", { scope: "col" }, one)))), body));
}

function member(one) {
  return h(
    "tr",
    {},
    h("td", { class: "title" }, h("a", { class: "name", href: `#/a/${one.analysis_id}` }, one.name), one.error ? h("span", { class: "soft" }, one.error.detail) : null),
    h("td", {}, one.task),
    h("td", {}, h("span", { class: `status ${one.status}` }, one.status)),
    h("td", { class: "number" }, `${Math.round(100 * one.fraction)} %`),
    h("td", {}, one.verdict ? h("span", { class: `verdict ${one.verdict}` }, one.verdict) : null),
  );
}

async function finished(view, found) {
  const id = found.id;
  const path = `/v1/studies/${id}/report`;
  document.body.className = "reading";
  const page = await call("GET", path, undefined, "text/html");
  const said = h("div", { role: "status" });
  const body = h("tbody", {}, awaited(found).map(member));
  view.append(
    h("h1", {}, found.name),
    h("p", { class: "soft" }, h("span", { class: "status succeeded" }, found.status), ` · ${counted(found)} · ${ago(found.finished_at)} (${when(found.finished_at)}) · ${id}`),
    h("div", { class: "row" }, save("HTML", page, `${id}.html`, "text/html"), fetched("JSON", path, "application/json", `${id}.json`), fetched("Markdown", path, "text/markdown", `${id}.md`), h("button", { type: "button", class: "plain danger", onclick: () => remove(said, found) }, "Delete")),
    said,
    h("details", {}, h("summary", {}, "Members and their analyses"), members(body)),
    framed(page, `Report of ${found.name}`),
  );
}

async function remove(target, found) {
  if (!confirm(`Delete the study “${found.name}” and its report? The analyses of its members stay.`)) {
    return;
  }
  await shown(target, async () => {
    await call("DELETE", `/v1/studies/${found.id}`);
    say("deleted");
    location.hash = "#/studies";
  });
}
