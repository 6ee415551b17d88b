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
            found.replaceChildren(...explorers(answer.texts));
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

// All texts under one slider that chooses the layer.
function explorers(texts) {
  const last = texts[0].layers.length - 1;
  const slider = h("input", { type: "range", min: 0, max: last, value: last, id: "layer" });
  const said = h("output", { for: slider.id });
  const shown = texts.map(explorer);
  const draw = () => {
    said.textContent = slider.value === "0" ? "layer 0: embeddings" : `layer ${slider.value}: block ${slider.value}`;
    shown.forEach((one) => one.draw(Number(slider.value)));
  };
  slider.addEventListener("input", draw);
  draw();
  return [
    h(
      "section",
      { class: "card sticky" },
      h("label", { for: slider.id }, "Layer", slider),
      said,
      h("p", { class: "soft" }, "The deeper the colour, the farther the token moved. Drift: squared distance between its two states over the spread of both models; colours end at 1."),
    ),
    ...shown.map((one) => one.element),
  ];
}

const visible = (token) => token.replaceAll("\n", "⏎").replaceAll(" ", "␣");
const percent = (share) => `${(100 * share).toFixed(share < 0.01 ? 2 : 1)} %`;

// A text as a row of tokens coloured by drift, and the token that is picked in both models.
function explorer(text) {
  const detail = h("div");
  const tokens = text.tokens.map((token, index) =>
    h("button", { type: "button", class: "token", "aria-pressed": "false", onclick: () => pick(index), onmouseenter: () => pick(index), onfocus: () => pick(index) }, token),
  );
  let picked = Math.max(0, text.special.findIndex((special) => !special));
  let layer = text.layers.at(-1);

  function draw(index) {
    layer = text.layers[index];
    tokens.forEach((element, place) => {
      const drift = layer.drift[place];
      const share = drift === null ? 0 : Math.min(1, drift);
      element.style.background = drift === null ? "none" : `color-mix(in oklab, var(--specialised) ${Math.round(70 * share)}%, var(--paper))`;
      element.title = drift === null ? "excluded: a special token, a causal model's first token, or an outlier" : `drift ${drift.toFixed(3)}`;
    });
    pick(picked);
  }

  function pick(index) {
    picked = index;
    tokens.forEach((element, place) => element.setAttribute("aria-pressed", String(place === picked)));
    detail.replaceChildren(
      h("h2", {}, `“${text.tokens[picked]}”: drift ${fixed(layer.drift[picked])}`),
      ...nextTokens(),
      h("div", { class: "pair" }, ["base", "tuned"].map(strongest)),
    );
  }

  // What both language models expect after the picked token; nothing of other models.
  function nextTokens() {
    const next = text.next_tokens?.[picked];
    if (!next) {
      return [];
    }
    const list = (side) =>
      h("div", {}, h("h3", {}, `next token, ${side} model`), h("ol", {}, next[side].map((one) => h("li", {}, `“${visible(one.token)}”: ${percent(one.probability)}`))));
    return [
      h("p", {}, `The next-token distributions differ by ${fixed(next.divergence, 2)} bits.`),
      h("div", { class: "pair" }, ["base", "tuned"].map(list)),
    ];
  }

  function strongest(side) {
    const latents = layer[`${side}_latents`];
    return h(
      "div",
      {},
      h("h3", {}, `${side} model`),
      h("p", { class: "soft" }, `norm ${fixed(layer[`${side}_norm`][picked], 2)}`),
      latents === null
        ? h("p", { class: "soft" }, "No autoencoder was kept for this layer.")
        : h("ol", {}, (latents[picked] ?? []).map((one) => h("li", {}, `latent ${one.latent}: ${one.activation.toFixed(3)}`))),
    );
  }

  const truncated = text.truncated ? h("span", { class: "soft" }, " (truncated)") : null;
  const written = text.completions
    ? h("div", { class: "pair" }, ["base", "tuned"].map((side) => h("div", {}, h("h3", {}, `Continuation, ${side} model`), h("p", { class: "written" }, text.completions[side]))))
    : null;
  const element = h("section", { class: "card" }, h("p", {}, text.text, truncated), written, h("div", { class: "tokens" }, tokens), detail);
  return { element, draw };
}
