// Two reports side by side, layer by layer.

import { call } from "./api.js";
import { fixed, h, lines } from "./dom.js";

export async function compare(view, signal, one, other) {
  const [found, first, second] = await Promise.all([
    call("GET", `/v1/analyses/${one}/compare/${other}`),
    call("GET", `/v1/analyses/${one}`),
    call("GET", `/v1/analyses/${other}`),
  ]);
  const names = [first.name || one, second.name || other];
  const unlike = [["base model", found.same_base], ["data", found.same_dataset], ["settings", found.same_settings]]
    .filter(([, same]) => !same)
    .map(([what]) => (what === "settings" ? `settings (${found.unlike_settings.join(", ")})` : what));
  const series = [
    { name: `one: ${names[0]}`, colour: "var(--general)", points: found.layers.map((layer) => [layer.index, layer.drift.one ?? 0]) },
    { name: `other: ${names[1]}`, colour: "var(--specialised)", dash: "6 4", points: found.layers.map((layer) => [layer.index, layer.drift.other ?? 0]) },
  ];
  const columns = [["drift", "Drift"], ["relative_l2", "Relative L2"], ["graft", "Graft"], ["probe", "Probe"], ["transfer_excess", "Transfer excess"], ["new_latents", "New latents"]]
    .filter(([name]) => found.layers.some((layer) => layer[name].one !== null || layer[name].other !== null));
  view.append(
    h("h1", {}, "Two reports"),
    h("p", {}, h("a", { href: `#/a/${one}` }, names[0]), " → ", h("a", { href: `#/a/${other}` }, names[1])),
    ...(unlike.length ? [h("p", { class: "error" }, `They were measured with other ${unlike.join(" and ")}: numbers may differ by that alone.`)] : []),
    h("div", { class: "card" }, lines({ series, label: "Drift by layer in both reports", xTitle: "layer (0: embeddings)", yTitle: "drift, 1 − CKA" })),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Layer"), h("th", { scope: "col" }, "Zone"), columns.map(([, title]) => h("th", { scope: "col", class: "number" }, `${title}: one → other`)))),
        h(
          "tbody",
          {},
          found.layers.map((layer) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, `${layer.index} ${layer.name}`),
              h("td", {}, [...new Set(layer.zones)].join(" → ")),
              columns.map(([name]) => h("td", { class: "number" }, difference(layer[name]))),
            ),
          ),
        ),
      ),
    ),
  );
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
