// All analyses: filters, verdicts, small drift curves, several to compare.

import { call } from "./api.js";
import { ago, duration, h, say, spark, when } from "./dom.js";

const PAGE = 50;
const AGAIN_MS = 4000;
const STATUSES = ["queued", "running", "succeeded", "failed", "cancelled"];

export async function list(view, signal) {
  const status = h("select", { id: "status" }, h("option", { value: "" }, "any"), STATUSES.map((one) => h("option", {}, one)));
  const name = h("input", { id: "name", type: "search", placeholder: "part of a name" });
  const tag = h("input", { id: "tag", type: "search", placeholder: "key=value" });
  const wrongTag = h("span", { class: "error" });
  const body = h("tbody");
  const more = h("button", { type: "button", class: "plain", hidden: true }, "More");
  const chosen = new Set();
  const comparing = h("button", { type: "button", disabled: true, onclick: () => (location.hash = `#/compare/${[...chosen].join("/")}`) }, "Compare");
  const count = h("p", { class: "soft", role: "status" });
  let cursor = null;
  let shown = [];
  let asked = 0;

  async function page(from, limit = PAGE) {
    const query = new URLSearchParams({ limit });
    for (const [field, value] of [["cursor", from], ["status", status.value], ["name", name.value.trim()]]) {
      if (value) {
        query.set(field, value);
      }
    }
    const [, label, value] = tag.value.trim().match(/^([^=:]+)[=:](.*)$/) ?? [];
    wrongTag.textContent = tag.value.trim() && !label ? "write key=value" : "";
    if (label) {
      query.set("tag", `${label}:${value}`);
    }
    return call("GET", `/v1/analyses?${query}`);
  }

  function draw() {
    body.replaceChildren(...shown.map((one) => row(one, chosen, choose)));
    more.hidden = cursor === null;
    const some = `${shown.length}${cursor ? " or more" : ""} ${shown.length === 1 ? "analysis" : "analyses"}`;
    count.textContent = shown.length ? some : filtered() ? "No analysis matches these filters." : "No analyses yet. Start with New analysis.";
  }

  function filtered() {
    return [status, name, tag].some((field) => field.value.trim());
  }

  function choose() {
    comparing.disabled = chosen.size < 2;
    comparing.textContent = chosen.size > 1 ? `Compare ${chosen.size}` : "Compare";
    say(`${chosen.size} chosen`);
  }

  // Answers to a question that is no longer asked are dropped.
  async function ask(from, limit) {
    asked += 1;
    const mine = asked;
    const found = await page(from, limit);
    return mine === asked ? found : null;
  }

  async function anew(limit = PAGE) {
    const found = await ask(null, limit);
    if (found) {
      [shown, cursor] = [found.items, found.next_cursor];
      draw();
    }
  }

  async function tried(action) {
    try {
      await action();
    } catch (problem) {
      count.textContent = problem.message;
    }
  }

  more.addEventListener("click", () => tried(async () => {
    const found = await ask(cursor);
    if (found) {
      shown = [...shown, ...found.items];
      cursor = found.next_cursor;
      draw();
    }
  }));
  let waiting;
  for (const field of [status, name, tag]) {
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => tried(anew), 250);
    });
  }
  await anew();
  view.append(
    h("h1", {}, "Analyses"),
    h(
      "form",
      { class: "row", role: "search", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
      h("label", { for: "status" }, "Status", status),
      h("label", { for: "name" }, "Name", name),
      h("label", { for: "tag" }, "Tag", tag, wrongTag),
      comparing,
    ),
    count,
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "list" },
        h("thead", {}, h("tr", {}, ["", "Analysis", "Verdict", "Drift by layer", "Status", "Created"].map((one) => h("th", { scope: "col" }, one || h("span", { class: "hidden" }, "Choose"))))),
        body,
      ),
    ),
    more,
  );
  refresh(signal, async () => {
    // a list that was read on and on stays as it is: it would jump under the reader
    if (shown.length <= PAGE) {
      const focused = document.activeElement?.id;
      await anew(PAGE);
      if (focused) {
        document.getElementById(focused)?.focus();
      }
    }
  });
}

function row(one, chosen, choose) {
  const title = one.name;
  const box = h("input", {
    type: "checkbox", id: `choose-${one.id}`, "aria-label": `Choose ${title} for a comparison`,
    checked: chosen.has(one.id), disabled: one.status !== "succeeded",
    onchange: (event) => {
      chosen[event.target.checked ? "add" : "delete"](one.id);
      choose();
    },
  });
  const tags = Object.entries(one.tags).map(([name, value]) => `${name}=${value}`).join(", ");
  const about = [one.compared === title ? "" : one.compared, tags].filter(Boolean).join(" · ");
  return h(
    "tr",
    {},
    h("td", { class: "choose" }, box),
    h("td", { class: "title" }, h("a", { class: "name", id: `open-${one.id}`, href: `#/a/${one.id}` }, title), about ? h("span", { class: "soft" }, about) : null),
    h("td", {}, one.verdict ? h("span", { class: `verdict ${one.verdict}`, title: "of the starter policy" }, VERDICTS[one.verdict]) : null),
    h("td", {}, one.drift ? spark(one.drift) : null),
    h("td", {}, h("span", { class: `status ${one.status}` }, one.status), h("span", { class: "soft took" }, took(one))),
    h("td", { class: "soft" }, h("span", { title: when(one.created_at) }, ago(one.created_at)), one.submitted_by ? h("span", { class: "took" }, `by ${one.submitted_by}`) : null),
  );
}

const VERDICTS = { pass: "✓ pass", warn: "! warn", fail: "✗ fail" };

// How long it took, or how far it is.
function took(one) {
  if (one.status === "running") {
    const left = one.progress.seconds_left;
    return `${Math.round(100 * one.progress.fraction)} %${left === null ? "" : `, about ${duration(left)} left`}`;
  }
  return one.finished_at && one.started_at ? duration((new Date(one.finished_at) - new Date(one.started_at)) / 1000) : "";
}

function refresh(signal, once) {
  const timer = setInterval(async () => {
    try {
      await once();
    } catch {
      return; // the next one may come through
    }
  }, AGAIN_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
}
