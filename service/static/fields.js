// Fields of forms: a label, an input, a hint and a place for what is wrong; and one for every setting of a schema.

import { h } from "./dom.js";

const LONG_TEXT = 1000; // characters from which on a text has several lines

let nextId = 0;

export function field(title, pointer, input, hint) {
  const id = input.id || `field-${(nextId += 1)}`;
  input.id = id;
  const error = h("p", { class: "error", id: `${id}-error` });
  input.setAttribute("aria-describedby", `${id}-error${hint ? ` ${id}-hint` : ""}`);
  const whole = h("div", {}, h("label", { for: id }, title, input), hint ? h("span", { class: "soft", id: `${id}-hint` }, hint) : null, error);
  return { whole, input, error, pointer };
}

// Every setting below a schema that `skipped` does not name, as fields. put(body) writes down what was changed.
// Parts that `always` names are there whatever the schema says.
export function settings(openapi, root, pointer, skipped, always) {
  const parts = [];
  const whole = h("div", {}, group(openapi, resolved(openapi, root), pointer, skipped, parts, always));
  return { whole, parts, put: (body) => parts.forEach((one) => one.put(body)) };
}

function resolved(openapi, schema) {
  if (schema.$ref) {
    return { ...openapi.components.schemas[schema.$ref.split("/").pop()], ...schema, $ref: undefined };
  }
  const options = (schema.anyOf ?? []).filter((one) => one.type !== "null");
  if (schema.anyOf && options.length === 1) {
    return { ...resolved(openapi, options[0]), ...schema, anyOf: undefined, nullable: options.length < schema.anyOf.length };
  }
  return schema;
}

function group(openapi, schema, pointer, skipped, parts, always) {
  const simple = [];
  const nested = [];
  for (const [name, raw] of Object.entries(schema.properties ?? {})) {
    const own = `${pointer}/${name}`;
    const inside = resolved(openapi, raw);
    if (skipped.has(own)) {
      continue;
    }
    if (inside.properties) {
      nested.push(part(openapi, name, always.has(own) ? { ...inside, nullable: false } : inside, own, skipped, parts, always));
    } else {
      const made = one(name, inside, own);
      parts.push(made);
      simple.push(made.whole);
    }
  }
  return [simple.length ? h("div", { class: "fields" }, simple) : null, nested];
}

// A part of its own; one that may be null can be switched on and off.
function part(openapi, name, schema, pointer, skipped, parts, always) {
  const own = [];
  const body = h("div", {}, group(openapi, schema, pointer, skipped, own, always));
  const title = words(name);
  if (!schema.nullable) {
    parts.push(...own);
    return h("fieldset", { "data-part": pointer }, h("legend", {}, title), hint(schema), body);
  }
  const first = schema.default !== null && schema.default !== undefined;
  const box = h("input", { type: "checkbox", checked: first, onchange: () => (body.hidden = !box.checked) });
  body.hidden = !first;
  const error = h("p", { class: "error" });
  parts.push({
    pointer, input: box, error, whole: box,
    put(target) {
      if (box.checked !== first) {
        write(target, pointer, box.checked ? {} : null);
      }
      if (box.checked) {
        own.forEach((inside) => inside.put(target));
      }
    },
  }, ...own.map((inside) => ({ ...inside, put: () => {} })));
  return h("fieldset", {}, h("legend", {}, h("label", { class: "inline" }, box, title)), hint(schema), error, body);
}

function hint(schema) {
  return schema.description ? h("p", { class: "soft" }, plain(schema.description.split("\n\n")[0])) : null;
}

function one(name, schema, pointer) {
  const given = input(schema);
  const made = field(words(name), pointer, given.element, plain(schema.description ?? ""));
  const first = JSON.stringify(given.read()); // what was not touched is left to the service
  made.put = (body) => {
    const value = given.read();
    if (value !== undefined && JSON.stringify(value) !== first) {
      write(body, pointer, value);
    }
  };
  return made;
}

function input(schema) {
  const start = schema.default;
  const inside = schema.items ?? {};
  if (schema.type === "boolean") {
    const element = h("input", { type: "checkbox", checked: start === true });
    return { element, read: () => element.checked };
  }
  const names = schema.enum ?? inside.enum;
  if (names) {
    const many = schema.type === "array";
    const chosen = many ? (start ?? []) : [start];
    const element = h("select", { multiple: many, size: many ? names.length : null }, names.map((name) => h("option", { selected: chosen.includes(name) }, name)));
    return { element, read: () => (many ? [...element.selectedOptions].map((option) => option.value) : element.value) };
  }
  if (schema.type === "integer" || schema.type === "number") {
    const element = h("input", { type: "number", step: schema.type === "integer" ? 1 : "any", value: start ?? "", placeholder: start === null ? "automatic" : "" });
    return { element, read: () => (element.value === "" ? (schema.nullable ? null : undefined) : Number(element.value)) };
  }
  if (inside.$ref) {
    const element = h("textarea", { rows: 3, placeholder: "a list, as JSON" });
    return { element, read: () => parsed(element.value) };
  }
  if (schema.type === "array") {
    const numbers = inside.type === "integer" || inside.type === "number";
    const element = h("textarea", { rows: 2, placeholder: "one per line" }, (start ?? []).join("\n"));
    const read = () => {
      const lines = element.value.split("\n").map((line) => line.trim()).filter(Boolean);
      return lines.length ? lines.map((line) => (numbers ? Number(line) : line)) : (start ?? undefined);
    };
    return { element, read };
  }
  if (schema.type === "object") {
    const element = h("textarea", { rows: 2, placeholder: "key=value, one per line" });
    const pairs = () => element.value.split("\n").map((line) => line.split("=")).filter(([key]) => key.trim());
    return { element, read: () => (pairs().length ? Object.fromEntries(pairs().map(([key, ...rest]) => [key.trim(), rest.join("=").trim()])) : undefined) };
  }
  const long = (schema.maxLength ?? 0) >= LONG_TEXT;
  const element = long ? h("textarea", { rows: 3 }, start ?? "") : h("input", { type: "text", value: start ?? "" });
  return { element, read: () => (element.value.trim() === "" ? undefined : long ? element.value : element.value.trim()) };
}

// JSON that was typed; what is none goes to the service as it is, which says what is wrong.
function parsed(text) {
  try {
    return text.trim() === "" ? undefined : JSON.parse(text);
  } catch {
    return text;
  }
}

// Writes a value at a JSON pointer, making the objects on the way.
export function write(body, pointer, value) {
  const names = pointer.split("/").slice(1);
  const last = names.pop();
  let at = body;
  for (const name of names) {
    at[name] ??= {};
    at = at[name];
  }
  at[last] = value;
}

const TITLES = { sae: "Sparse autoencoders", lora: "LoRA", finetune: "Fine-tune", uri: "URI", k: "k" };
const words = (name) => TITLES[name] ?? name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const plain = (description) => description.replaceAll("`", "");
