// A form for a pair or a fine-tune. What the service says is wrong stands at the field that it means.

import { call, Problem, upload } from "./api.js";
import { h, say } from "./dom.js";

let nextId = 0;

function field(title, pointer, input, hint) {
  const id = input.id || `field-${(nextId += 1)}`;
  input.id = id;
  const error = h("p", { class: "error", id: `${id}-error` });
  input.setAttribute("aria-describedby", `${id}-error${hint ? ` ${id}-hint` : ""}`);
  const whole = h("div", {}, h("label", { for: id }, title, input), hint ? h("span", { class: "soft", id: `${id}-hint` }, hint) : null, error);
  return { whole, input, error, pointer };
}

// A URI, or a file that is uploaded when the form is sent.
function place(title, pointer, accept, hint) {
  const text = field(title, pointer, h("input", { type: "text", spellcheck: "false", autocomplete: "off" }), hint);
  const file = h("input", { type: "file", accept, "aria-label": `${title}: upload a file` });
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": `${title}: upload` });
  file.addEventListener("change", () => (text.input.value = file.files[0] ? `file: ${file.files[0].name}` : ""));
  text.whole.append(file, bar);
  let sent = null;
  text.uri = async () => {
    if (!file.files[0] || text.input.value !== `file: ${file.files[0].name}`) {
      return text.input.value.trim();
    }
    if (sent?.file !== file.files[0]) { // a form that is sent again after a mistake sends no file twice
      bar.hidden = false;
      say(`uploading ${file.files[0].name}`);
      sent = { file: file.files[0], uri: (await upload(file.files[0], (share) => (bar.value = share))).uri };
    }
    return sent.uri;
  };
  return text;
}

const number = (value, given = {}) => h("input", { type: "number", value, ...given });
const filled = (input) => (input.value.trim() === "" ? undefined : Number(input.value));

export function submit(view) {
  const archive = "a URI (hf://, s3://, mlflow://, file://), or a zip of the checkpoint's folder";
  const parts = {
    name: field("Name", "/name", h("input", { type: "text", maxlength: 200 }), "for people; shown in lists and in the report"),
    base: place("Base model", "/base/uri", ".zip", archive),
    tuned: place("Tuned model", "/tuned/uri", ".zip", archive),
    dataset: place("Texts", "/dataset/uri", ".csv,.tsv,.jsonl,.ndjson,.json,.txt,.parquet,.gz,.bz2,.xz", "a URI, or a file: CSV, TSV, JSON Lines, JSON, Parquet, plain text"),
    inline: field("… or texts, one a line", "/dataset/inline", h("textarea", {}), "used where no file and no URI is given"),
    text: field("Text column", "/dataset/text_column", h("input", { type: "text", value: "text" })),
    pair: field("Text pair column", "/dataset/text_pair_column", h("input", { type: "text" }), "second text of a pair; empty: single texts"),
    label: field("Label column", "/dataset/label_column", h("input", { type: "text" }), "empty: label, where there is one"),
    examples: field("Texts to analyse", "/dataset/max_examples", number(2000, { min: 20, max: 100000 })),
    tokens: field("Tokens to compare", "/analysis/max_tokens", number(100000, { min: 100 })),
    rate: field("Learning rate", "/finetune/learning_rate", number("0.00005", { step: "any", min: 0 })),
    epochs: field("Epochs", "/finetune/epochs", number(3, { min: 1, max: 100 })),
    rows: field("Rows to train on", "/finetune/train_examples", number("", { min: 8 }), "empty: all the others"),
    frozen: field("Blocks to freeze", "/finetune/freeze_first", number(0, { min: 0 })),
    seed: field("Seed", "/seed", number(0, { min: 0 })),
    shown: field("Texts to show token by token", "/analysis/texts", h("textarea", {}), "one a line; empty: the first ones"),
  };
  const mode = (value, title, checked) => h("label", { class: "inline" }, h("input", { type: "radio", name: "mode", value, checked, onchange: modes }), title);
  const check = (title, checked) => {
    const box = h("input", { type: "checkbox", checked });
    return { box, whole: h("label", { class: "inline" }, box, title) };
  };
  const sae = check("Sparse autoencoders (most of the time an analysis takes)", true);
  const grafts = check("Grafts: does the change matter to the answers?", true);
  const whole = h("p", { class: "error", role: "alert" });
  const button = h("button", { type: "submit" }, "Submit");
  const tuning = h("fieldset", { hidden: true }, h("legend", {}, "Fine-tune"), h("div", { class: "fields" }, [parts.rate, parts.epochs, parts.rows, parts.frozen].map((one) => one.whole)));
  const form = h(
    "form",
    { novalidate: true, onsubmit: send },
    h("h1", {}, "New analysis"),
    h(
      "fieldset",
      {},
      h("legend", {}, "Models"),
      h("div", { class: "row", role: "radiogroup", "aria-label": "What is compared" }, mode("pair", "two checkpoints", true), mode("finetune", "one, fine-tuned here", false)),
      h("div", { class: "fields" }, parts.name.whole, parts.base.whole, parts.tuned.whole),
    ),
    tuning,
    h("fieldset", {}, h("legend", {}, "Data"), h("div", { class: "fields" }, [parts.dataset, parts.inline, parts.text, parts.pair, parts.label, parts.examples].map((one) => one.whole))),
    h("fieldset", {}, h("legend", {}, "Analysis"), sae.whole, grafts.whole, h("div", { class: "fields" }, [parts.tokens, parts.seed, parts.shown].map((one) => one.whole))),
    whole,
    button,
  );
  view.append(form);

  function finetuned() {
    return form.elements.mode.value === "finetune";
  }

  function modes() {
    tuning.hidden = !finetuned();
    parts.tuned.whole.hidden = finetuned();
  }

  async function request() {
    const body = {
      name: parts.name.input.value,
      base: { uri: await parts.base.uri() },
      dataset: {
        text_column: parts.text.input.value, text_pair_column: parts.pair.input.value.trim() || null,
        label_column: parts.label.input.value.trim() || null, max_examples: filled(parts.examples.input),
      },
      analysis: { grafts: grafts.box.checked, max_tokens: filled(parts.tokens.input), texts: split(parts.shown.input.value) },
      seed: filled(parts.seed.input),
    };
    if (!sae.box.checked) {
      body.analysis.sae = null;
    }
    const uri = await parts.dataset.uri();
    const texts = split(parts.inline.input.value);
    if (uri || !texts.length) {
      body.dataset.uri = uri;
    } else {
      body.dataset = { inline: { texts }, max_examples: body.dataset.max_examples };
    }
    if (finetuned()) {
      body.finetune = {
        learning_rate: filled(parts.rate.input), epochs: filled(parts.epochs.input),
        train_examples: filled(parts.rows.input) ?? null, freeze_first: filled(parts.frozen.input),
      };
    } else {
      body.tuned = { uri: await parts.tuned.uri() };
    }
    return body;
  }

  async function send(event) {
    event.preventDefault();
    clear();
    const wrong = Object.values(parts).filter((one) => one.input.validity.badInput);
    for (const one of wrong) {
      one.error.textContent = "this is no number";
      one.input.setAttribute("aria-invalid", "true");
    }
    if (wrong.length) {
      wrong[0].input.focus();
      return;
    }
    button.disabled = true;
    try {
      const made = await call("POST", "/v1/analyses", await request());
      location.hash = `#/a/${made.id}`;
    } catch (error) {
      if (!(error instanceof Problem)) {
        throw error;
      }
      point(error);
    } finally {
      button.disabled = false;
    }
  }

  function clear() {
    whole.textContent = "";
    for (const one of Object.values(parts)) {
      one.error.textContent = "";
      one.input.removeAttribute("aria-invalid");
    }
  }

  function point(problem) {
    const left = [];
    let first = null;
    for (const { pointer, detail } of problem.errors) {
      const meant = Object.values(parts).find((one) => pointer === one.pointer || pointer.startsWith(`${one.pointer}/`))
        ?? Object.values(parts).find((one) => one.pointer.startsWith(`${pointer}/`) && pointer !== "");
      if (!meant) {
        left.push(detail);
        continue;
      }
      meant.error.textContent = detail;
      meant.input.setAttribute("aria-invalid", "true");
      first ??= meant.input;
    }
    whole.textContent = problem.errors.length ? left.join(" ") : problem.message;
    first?.focus();
    say(`${problem.errors.length || 1} to mend`);
  }
}

const split = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
