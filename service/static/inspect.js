// Other sentences through both models: drift of each token at a layer, and its strongest latents in both.

import { call, Problem } from "./api.js";
import { fixed, h, say } from "./dom.js";

export async function inspect(view, signal, id) {
  const analysis = await call("GET", `/v1/analyses/${id}`);
  const text = h("textarea", { id: "text", required: true });
  const error = h("p", { class: "error", role: "alert" });
  const found = h("div");
  const button = h("button", { type: "submit" }, "Run through both models");
  view.append(
    h("h1", {}, "Inspect texts"),
    h("p", {}, h("a", { href: `#/a/${id}` }, analysis.name)),
    h(
      "form",
      {
        class: "card",
        onsubmit: async (event) => {
          event.preventDefault();
          error.textContent = "";
          button.disabled = true;
          say("asking both models");
          try {
            const texts = text.value.split("\n").map((line) => line.trim()).filter(Boolean);
            const answer = await call("POST", "/v1/inspect", { analysis_id: id, texts });
            found.replaceChildren(...answer.texts.map(explorer));
            say("done");
          } catch (problem) {
            if (!(problem instanceof Problem)) {
              throw problem;
            }
            error.textContent = problem.message;
          } finally {
            button.disabled = false;
          }
        },
      },
      h("label", { for: "text" }, "Texts, one per line", text),
      error,
      h("p", { class: "soft" }, "The first request loads both models, which takes a while."),
      button,
    ),
    found,
  );
}

// A text as a row of tokens coloured by drift at the layer that the slider says.
function explorer(text, place) {
  const last = text.layers.length - 1;
  const slider = h("input", { type: "range", min: 0, max: last, value: last, id: `layer-${place}` });
  const said = h("output", { for: slider.id });
  const latents = h("div", { class: "pair" });
  const tokens = text.tokens.map((token, index) =>
    h("button", { type: "button", class: "token", "aria-pressed": "false", onclick: () => pick(index), onmouseenter: () => pick(index), onfocus: () => pick(index) }, token),
  );
  let picked = text.special.findIndex((special) => !special);

  function draw() {
    const layer = text.layers[slider.value];
    said.textContent = slider.value === "0" ? "layer 0: embeddings" : `layer ${slider.value}: block ${slider.value}`;
    tokens.forEach((element, index) => {
      const drift = layer.drift[index];
      const share = drift === null ? 0 : Math.min(1, drift);
      element.style.background = drift === null ? "none" : `color-mix(in oklab, var(--specialised) ${Math.round(70 * share)}%, var(--paper))`;
      element.title = drift === null ? "excluded: a special token, a causal model's first token, or an outlier" : `drift ${drift.toFixed(3)}`;
      element.setAttribute("aria-pressed", String(index === picked));
    });
    latents.replaceChildren(...["base", "tuned"].map((side) => strongest(side, layer, picked)));
  }

  function pick(index) {
    picked = index;
    draw();
  }

  function strongest(side, layer, index) {
    const rows = layer[`${side}_latents`]?.[index] ?? [];
    return h(
      "div",
      {},
      h("h2", {}, `“${text.tokens[index]}” in the ${side} model`),
      h("p", { class: "soft" }, `drift ${fixed(layer.drift[index])}, norm ${fixed(layer[`${side}_norm`][index], 2)}`),
      layer[`${side}_latents`] === null
        ? h("p", { class: "soft" }, "No autoencoder was kept for this layer.")
        : h("ol", {}, rows.map((one) => h("li", {}, `latent ${one.latent}: ${one.activation.toFixed(3)}`))),
    );
  }

  slider.addEventListener("input", draw);
  draw();
  return h(
    "section",
    { class: "card" },
    h("p", {}, text.text, text.truncated ? h("span", { class: "soft" }, " (truncated)") : null),
    h("label", { for: slider.id }, "Layer", slider),
    said,
    h("p", { class: "soft" }, "Deeper colour: the token moved farther. Drift of a token is its squared distance over the spread of both models; colours end at 1."),
    h("div", { class: "tokens" }, tokens),
    latents,
  );
}
