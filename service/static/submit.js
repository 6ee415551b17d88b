// The form of an analysis: it offers what there is, previews the data set, checks while one types, and estimates.

import { call, Problem } from "./api.js";
import { duration, h, say } from "./dom.js";
import { field, settings, write } from "./fields.js";
import { place } from "./place.js";

const CHECK_AFTER_MS = 700;
const DATA = ".csv,.tsv,.jsonl,.ndjson,.json,.txt,.parquet,.gz,.bz2,.xz";

const number = (value, given = {}) => h("input", { type: "number", value, ...given });
const OBJECTIVES = { classification: "labels (a classifier)", sft: "answers (a language model, SFT)", dpo: "preferences (a language model, DPO)" };
const filled = (input) => (input.value.trim() === "" ? undefined : Number(input.value));
const split = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

export async function submit(view, signal) {
  let timer;
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(check, CHECK_AFTER_MS);
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  const columns = h("datalist", { id: "columns" });
  const column = (value) => h("input", { type: "text", value, list: "columns", autocomplete: "off" });
  const model = "URI (hf://, s3://, mlflow://, file://), a folder, or a zip of it";
  const parts = {
    name: field("Name", "/name", h("input", { type: "text", maxlength: 200 }), "shown in lists and in the report; by default the models and the data set"),
    base: place("Base model", "/base/uri", { accept: ".zip", hint: model, folder: true }, soon),
    tuned: place("Tuned model", "/tuned/uri", { accept: ".zip", hint: `${model}, or a PEFT adapter`, folder: true }, soon),
    dataset: place("Data set", "/dataset/uri", { accept: DATA, hint: "URI or file: CSV, TSV, JSON Lines, JSON, Parquet, plain text", folder: false }, soon),
    inline: field("… or texts, one per line", "/dataset/inline", h("textarea", {}), "used if no data set is given"),
    text: field("Text column", "/dataset/text_column", column("text")),
    pair: field("Text pair column", "/dataset/text_pair_column", column(""), "second text of a pair; leave empty for single texts"),
    label: field("Label column", "/dataset/label_column", column(""), "defaults to label, if it exists"),
    examples: field("Texts to analyse", "/dataset/max_examples", number(2000, { min: 20, max: 100000 })),
    objective: field("Objective", "/finetune/objective", h("select", {}, Object.entries(OBJECTIVES).map(([value, title]) => h("option", { value }, title))), "what the model is trained for"),
    rate: field("Learning rate", "/finetune/learning_rate", number("", { step: "any", min: 0 }), "defaults to 5e-5; of language models to 2e-5 (answers) and 1e-6 (preferences)"),
    epochs: field("Epochs", "/finetune/epochs", number(3, { min: 1, max: 100 })),
    rows: field("Rows to train on", "/finetune/train_examples", number("", { min: 8 }), "defaults to all rows that are not analysed"),
    frozen: field("Blocks to freeze", "/finetune/freeze_first", number(0, { min: 0 })),
    shown: field("Texts to show token by token", "/analysis/texts", h("textarea", {}), "one per line; defaults to the first texts"),
  };
  const mode = (value, title, checked) => h("label", { class: "inline" }, h("input", { type: "radio", name: "mode", value, checked, onchange: modes }), title);
  const box = (title, checked) => {
    const input = h("input", { type: "checkbox", checked, onchange: soon });
    return { input, whole: h("label", { class: "inline" }, input, title) };
  };
  const sae = box("Sparse autoencoders (most of the time an analysis takes)", true);
  const grafts = box("Grafts: does the change matter to the outputs?", true);
  const whole = h("p", { class: "error", role: "alert" });
  const estimate = h("p", { class: "estimate", id: "estimate", role: "status", hidden: true });
  const preview = h("div", { class: "preview", id: "preview", role: "status" });
  const button = h("button", { type: "submit" }, "Submit");
  const advanced = h("details", {}, h("summary", {}, "Advanced: every setting"), h("p", { class: "soft" }, "Loading…"));
  const tuning = h("fieldset", { hidden: true }, h("legend", {}, "Fine-tune"), h("div", { class: "fields" }, [parts.objective, parts.rate, parts.epochs, parts.rows, parts.frozen].map((one) => one.whole)));
  let more = { parts: [], put: () => {} };
  let touched = new Set();
  let asked = 0;
  const form = h(
    "form",
    { novalidate: true, onsubmit: send, oninput: (event) => { touched.add(event.target); soon(); } },
    h("h1", {}, "New analysis"),
    h(
      "fieldset",
      {},
      h("legend", {}, "Models"),
      h("div", { class: "row", role: "radiogroup", "aria-label": "What is compared" }, mode("pair", "Two checkpoints", true), mode("finetune", "One checkpoint, fine-tuned here", false)),
      h("div", { class: "fields" }, parts.base.whole, parts.tuned.whole),
    ),
    tuning,
    h("fieldset", {}, h("legend", {}, "Data"), h("div", { class: "fields" }, parts.dataset.whole, parts.inline.whole), h("div", { class: "fields" }, [parts.text, parts.pair, parts.label, parts.examples].map((one) => one.whole)), columns, preview),
    h("fieldset", {}, h("legend", {}, "Analysis"), sae.whole, grafts.whole, h("div", { class: "fields" }, parts.name.whole, parts.shown.whole), advanced),
    whole,
    estimate,
    button,
  );
  view.append(form);
  offer();
  schema();

  // What the service has at hand, as suggestions; the form works without them.
  async function offer() {
    try {
      const found = await call("GET", "/v1/sources");
      parts.base.offer(found.models);
      parts.tuned.offer(found.models);
      parts.dataset.offer(found.datasets);
    } catch (error) {
      if (!(error instanceof Problem)) {
        throw error;
      }
    }
  }

  async function schema() {
    const openapi = await call("GET", "/openapi.json");
    const skipped = new Set([...Object.values(parts).map((one) => one.pointer), "/base", "/tuned", "/analysis/grafts"]);
    more = settings(openapi, { $ref: "#/components/schemas/AnalysisRequest" }, "", skipped, new Set(["/finetune"]));
    advanced.replaceChildren(advanced.firstChild, more.whole);
    parted();
  }

  function finetuned() {
    return form.elements.mode.value === "finetune";
  }

  function modes() {
    parted();
    soon();
  }

  // Shows what belongs to the kind of comparison.
  function parted() {
    tuning.hidden = !finetuned();
    parts.tuned.whole.hidden = finetuned();
    const advanced = form.querySelector("[data-part='/finetune']");
    if (advanced) {
      advanced.hidden = !finetuned();
    }
  }

  function request() {
    const body = { base: { uri: parts.base.uri() }, dataset: {}, analysis: {} };
    more.put(body);
    if (!finetuned()) {
      delete body.finetune;
    }
    write(body, "/name", parts.name.input.value);
    body.dataset.max_examples = filled(parts.examples.input);
    const texts = split(parts.inline.input.value);
    if (parts.dataset.uri() || !texts.length) {
      body.dataset.uri = parts.dataset.uri();
      body.dataset.text_column = parts.text.input.value;
      body.dataset.text_pair_column = parts.pair.input.value.trim() || null;
      body.dataset.label_column = parts.label.input.value.trim() || null;
    } else {
      body.dataset.inline = { texts };
    }
    body.analysis.grafts = grafts.input.checked;
    body.analysis.texts = split(parts.shown.input.value);
    if (!sae.input.checked) {
      body.analysis.sae = null;
    }
    if (finetuned()) {
      body.finetune = {
        ...body.finetune,
        objective: parts.objective.input.value,
        learning_rate: filled(parts.rate.input), epochs: filled(parts.epochs.input),
        train_examples: filled(parts.rows.input) ?? null, freeze_first: filled(parts.frozen.input),
      };
    } else {
      body.tuned = { uri: parts.tuned.uri() };
    }
    return body;
  }

  // Looks at the data set and asks for an estimate, which finds what is wrong; fields that are still empty are let be.
  async function check() {
    asked += 1;
    const mine = asked;
    const body = request();
    const hasData = Boolean(body.dataset.uri || body.dataset.inline);
    await Promise.all([
      hasData ? tried(() => call("POST", "/v1/datasets/preview", { dataset: body.dataset, labelled: finetuned() }), mine, rows, () => preview.replaceChildren()) : preview.replaceChildren(),
      body.base.uri && hasData && (finetuned() || body.tuned.uri)
        ? tried(() => call("POST", "/v1/estimates", body), mine, told, (problem) => { estimate.hidden = true; point(problem, true); })
        : (estimate.hidden = true),
    ]);
  }

  async function tried(ask, mine, then, otherwise) {
    try {
      const found = await ask();
      if (mine === asked && !signal.aborted) {
        then(found);
      }
    } catch (problem) {
      if (!(problem instanceof Problem)) {
        throw problem;
      }
      if (mine === asked && !signal.aborted) {
        otherwise(problem);
      }
    }
  }

  function told(found) {
    clear();
    const basis = found.basis === "measured" ? "" : " (a guess: no analysis has finished here yet)";
    const queue = found.queued_before ? ` ${found.queued_before} queued first.` : "";
    estimate.textContent = `About ${duration(found.seconds)}, the first drift curve after ${duration(found.first_curve_seconds)}${basis}. `
      + `Memory ${(found.memory_bytes / 2 ** 30).toFixed(1)} GiB, scratch ${(found.scratch_bytes / 2 ** 30).toFixed(1)} GiB.${queue}`;
    estimate.hidden = false;
  }

  function rows(found) {
    columns.replaceChildren(...found.columns.map((name) => h("option", { value: name })));
    for (const { pointer, detail } of found.problems) {
      mark(pointer, detail);
    }
    if (!found.rows.length) {
      preview.replaceChildren(found.columns.length ? h("p", { class: "soft" }, `Columns: ${found.columns.join(", ")}`) : "");
      return;
    }
    const heads = ["text", "pair", "label"].filter((name) => found.rows.some((row) => row[name] !== null));
    const count = found.rows_estimated === null ? "" : ` of about ${found.rows_estimated.toLocaleString()}`;
    preview.replaceChildren(
      h("p", { class: "soft" }, `First ${found.rows.length} rows${count}${found.columns.length ? `; columns: ${found.columns.join(", ")}` : ""}`),
      h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, found.rows.map((row) => h("tr", {}, heads.map((name) => h("td", { title: row[name] ?? "" }, row[name] ?? "—"))))))),
    );
  }

  async function send(event) {
    event.preventDefault();
    clearTimeout(timer);
    asked += 1;
    clear();
    const all = [...Object.values(parts), ...more.parts];
    const wrong = all.filter((one) => one.input.validity.badInput);
    for (const one of wrong) {
      one.error.textContent = "must be a number";
      one.input.setAttribute("aria-invalid", "true");
    }
    if (wrong.length) {
      wrong[0].input.focus();
      return;
    }
    button.disabled = true;
    try {
      await Promise.all([parts.base, parts.tuned, parts.dataset].map((one) => one.busy));
      const made = await call("POST", "/v1/analyses", request());
      location.hash = `#/a/${made.id}`;
    } catch (error) {
      if (!(error instanceof Problem)) {
        throw error;
      }
      point(error, false);
    } finally {
      button.disabled = false;
    }
  }

  function clear() {
    whole.textContent = "";
    for (const one of [...Object.values(parts), ...more.parts]) {
      one.error.textContent = "";
      one.input.removeAttribute("aria-invalid");
    }
  }

  function meant(pointer) {
    const all = [...Object.values(parts), ...more.parts];
    const around = all.filter((one) => pointer.startsWith(`${one.pointer}/`)).sort((a, b) => b.pointer.length - a.pointer.length);
    return all.find((one) => pointer === one.pointer) ?? around[0]
      ?? all.find((one) => one.pointer.startsWith(`${pointer}/`) && pointer !== "");
  }

  function mark(pointer, detail) {
    const one = meant(pointer);
    if (one) {
      one.error.textContent = detail;
      one.input.setAttribute("aria-invalid", "true");
    }
    return one;
  }

  // Shows what is wrong at its field; while one types, nothing is said of empty fields, and the focus stays.
  function point(problem, typing) {
    clear();
    const left = [];
    let first = null;
    for (const { pointer, detail } of problem.errors) {
      const one = meant(pointer);
      if (typing && one && !touched.has(one.input) && one.input.value === "") {
        continue;
      }
      if (!mark(pointer, detail)) {
        left.push(detail);
      }
      first ??= one?.input ?? null;
    }
    whole.textContent = problem.errors.length ? left.join(" ") : problem.message;
    if (!typing) {
      first?.closest("details")?.setAttribute("open", "");
      first?.focus();
      say(`${problem.errors.length || 1} errors`);
    }
  }
}
