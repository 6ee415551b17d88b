// Two or more reports: their drift curves over each other, and their numbers layer by layer.

import { call } from "./api.js";
import { fixed, h, lines } from "./dom.js";

const COLOURS = ["var(--general)", "var(--specialised)", "var(--good)", "var(--transitional)", "var(--violet)", "var(--soft)"];
const DASHES = ["none", "7 4", "2 3", "10 3 2 3"];
const MEASURES = [["drift", "Drift"], ["relative_l2", "Relative L2"], ["graft", "Graft"], ["probe", "Probe"], ["transfer_excess", "Transfer excess"], ["new_latents", "New latents"]];

export async function compare(view, signal, ids) {
  const [first, ...others] = ids.split("/");
  const [found, analyses] = await Promise.all([
    Promise.all(others.map((other) => call("GET", `/v1/analyses/${first}/compare/${other}`))),
    Promise.all([first, ...others].map((id) => call("GET", `/v1/analyses/${id}`))),
  ]);
  const names = analyses.map((one, index) => `${String.fromCharCode(65 + index)}: ${one.name}`);
  const curves = [found[0].layers.map((layer) => layer.drift.one), ...found.map((one) => one.layers.map((layer) => layer.drift.other))];
  const series = curves.map((drift, index) => ({
    name: names[index],
    colour: COLOURS[index % COLOURS.length],
    dash: DASHES[index % DASHES.length],
    points: drift.map((value, layer) => [layer, value]).filter(([, value]) => value !== null),
  }));
  view.append(
    h("h1", {}, "Compare reports"),
    h("ul", { class: "plain" }, analyses.map((one, index) => h("li", {}, `${String.fromCharCode(65 + index)}: `, h("a", { href: `#/a/${one.id}` }, one.name)))),
    ...found.flatMap((one, index) => warning(one, index)),
    h("div", { class: "card" }, lines({ series, label: "Drift by layer in all reports", xTitle: "layer (0: embeddings)", yTitle: "drift, 1 − CKA" })),
    found.length === 1 ? differences(found[0]) : levels(found, names),
  );
}

// What was measured otherwise, so that differences may come from that.
function warning(found, index) {
  const unlike = [["base model", found.same_base], ["data set", found.same_dataset], ["settings", found.same_settings]]
    .filter(([, same]) => !same)
    .map(([what]) => (what === "settings" ? `settings (${found.unlike_settings.join(", ")})` : what));
  if (!unlike.length) {
    return [];
  }
  const other = String.fromCharCode(66 + index);
  return [h("p", { class: "error" }, `A and ${other} differ in ${unlike.join(", ")}: their numbers may differ for that reason alone.`)];
}

function table(heads, rows) {
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "group", "aria-label": "Numbers by layer" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, heads.map((one, index) => h("th", { scope: "col", class: index ? "number" : null }, one)))),
      h("tbody", {}, rows.map(([head, ...cells]) => h("tr", {}, h("th", { scope: "row" }, head), cells.map((cell) => h("td", { class: "number" }, cell))))),
    ),
  );
}

function differences(found) {
  const columns = MEASURES.filter(([name]) => found.layers.some((layer) => layer[name].one !== null || layer[name].other !== null));
  const rows = found.layers.map((layer) => [`${layer.index} ${layer.name}`, [...new Set(layer.zones)].join(" → "), ...columns.map(([name]) => difference(layer[name]))]);
  return table(["Layer", "Zone", ...columns.map(([, title]) => `${title}: A → B`)], rows);
}

function levels(found, names) {
  const rows = found[0].layers.map((layer, index) => [
    `${layer.index} ${layer.name}`,
    fixed(layer.drift.one),
    ...found.map((one) => fixed(one.layers[index].drift.other)),
  ]);
  return table(["Layer", ...names.map((name) => `Drift of ${name.split(":")[0]}`)], rows);
}

function difference(found) {
  if (found.one === null && found.other === null) {
    return "—";
  }
  if (found.incomparable) {
    return h("span", { title: found.incomparable }, `${fixed(found.one)} | ${fixed(found.other)} (${found.incomparable})`);
  }
  const size = found.difference === null ? null : fixed(Math.abs(found.difference));
  const sign = size === null || Number(size) === 0 ? "" : found.difference > 0 ? "+" : "−";
  const change = size === null ? "" : ` (${sign}${size})`;
  return `${fixed(found.one)} → ${fixed(found.other)}${change}`;
}
