// One selected layer, which every panel follows: tokens, latents, the line in every chart. After figures.js.
const last = data.layers.length - 1;
let picked = data.picked;

function pick(layer) {
  picked = Math.max(0, Math.min(last, Number(layer)));
  const found = data.layers[picked];
  $("layer").value = picked;
  $("layer-name").textContent = `${picked} · ${found.name} · ${found.zone}`;
  const facts = [["drift", number(found.drift)], ["resolution", number(found.resolution, 5)], ["of random weights", found.of_scale], ["CKA, 95 %", found.interval], ["relative L2", number(found.relative_l2, 3)],
    ["graft", number(found.graft, 3)], ["probe", number(found.probe, 3)], ["FVU base", number(found.fvu, 3)], ["transfer excess", number(found.transfer, 3)], ["latents beyond floor", found.latents ?? "—"]];
  $("facts").replaceChildren(...facts.filter(([, value]) => value !== "—").map(([name, value]) => {
    const item = make("span", "", { class: "fact" });
    item.append(make("span", `${name} `, { class: "soft" }), make("strong", value));
    return item;
  }));
  document.querySelectorAll("[data-layer]").forEach((row) => row.classList.toggle("picked", Number(row.dataset.layer) === picked));
  Object.entries(views).forEach(([id, view]) => mark(id, view));
  showLatents();
  colour();
}

// A line through the picked layer, in every chart whose axis is layers.
function mark(id, view) {
  document.querySelectorAll(`#${id} .pick-line`).forEach((line) => line.remove());
  let scale;
  try {
    scale = view.scale("x");
  } catch {
    return; // small multiples have a scale for each
  }
  if (!across(data.specs[id]).some((field) => field === "layer" || field === "tuned")) {
    return;
  }
  const place = scale(picked) + (scale.bandwidth ? scale.bandwidth() / 2 : 0);
  const root = document.querySelector(`#${id} svg g.root`) ?? document.querySelector(`#${id} svg g`);
  if (!root || !Number.isFinite(place)) {
    return;
  }
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const given = { class: "pick-line", x1: place, x2: place, y1: 0, y2: view.height() };
  Object.entries(given).forEach(([name, value]) => line.setAttribute(name, value));
  (root.querySelector("g") ?? root).prepend(line);
}

// The fields on the x axes of a chart and its parts.
function across(spec) {
  return [spec.encoding?.x?.field, ...(spec.layer ?? []).flatMap(across)];
}

// Texts as rows of tokens, coloured by drift at the picked layer.
function tokens() {
  const place = $("texts");
  if (!place) {
    return;
  }
  data.texts.forEach((text, index) => {
    const row = make("p", "", { class: "text", tabindex: 0, "data-text": index, "aria-label": `Text ${index + 1}: arrow keys go from token to token` });
    text.tokens.forEach((token, at) => row.append(make("span", token, { "data-token": at, class: [text.special[at] ? "special" : "", text.roles ? `role-${text.roles[at]}` : ""].join(" ").trim() })));
    row.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        event.preventDefault();
        const now = shown?.text === index ? shown.token : -step;
        show(index, Math.max(0, Math.min(text.tokens.length - 1, now + step)));
      }
    });
    row.addEventListener("focus", () => shown?.text === index || show(index, Math.max(0, text.special.indexOf(false))));
    place.append(row);
  });
  for (const kind of ["mouseover", "click"]) {
    place.addEventListener(kind, (event) => {
      const { token } = event.target.dataset;
      if (token !== undefined) {
        show(Number(event.target.parentElement.dataset.text), Number(token));
      }
    });
  }
}

let shown = null;

function colour() {
  document.querySelectorAll("#texts .text").forEach((row) => {
    const text = data.texts[row.dataset.text];
    const drift = text.drift[picked];
    [...row.children].forEach((token, at) => {
      const share = Math.min(1, Math.max(0, drift[at]));
      token.style.background = `color-mix(in oklab, var(--moved) ${Math.round(75 * share)}%, transparent)`;
      const whose = text.roles ? `, ${text.roles[at]}` : "";
      token.title = `drift ${drift[at].toFixed(3)} at layer ${picked}${whose}`;
    });
  });
  if (shown) {
    show(shown.text, shown.token);
  }
}

function show(index, at) {
  document.querySelectorAll("#texts .here").forEach((token) => token.classList.remove("here"));
  document.querySelector(`#texts [data-text="${index}"]`).children[at].classList.add("here");
  shown = { text: index, token: at };
  const text = data.texts[index];
  const target = $("token");
  const curve = text.drift.map((layer) => layer[at]);
  const [width, height] = [320, 70];
  const top = Math.max(1, ...curve);
  const x = (layer) => 6 + ((width - 12) * layer) / Math.max(1, last);
  const y = (value) => height - 6 - ((height - 12) * value) / top;
  const line = curve.map((value, layer) => `${x(layer)},${y(value)}`).join(" ");
  const said = make("div");
  said.innerHTML = `<svg viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img"><line x1="6" x2="${width - 6}" y1="${height - 6}" y2="${height - 6}" stroke="var(--line)"/><polyline points="${line}" fill="none" stroke="var(--accent)" stroke-width="2"/><circle cx="${x(picked)}" cy="${y(curve[picked])}" r="4" fill="var(--moved)"/></svg>`;
  said.firstChild.setAttribute("aria-label", `Drift of this token by layer, from ${curve[0].toFixed(3)} to ${curve.at(-1).toFixed(3)}`);
  const parts = [make("h3", `“${text.tokens[at]}” at layer ${picked}: drift ${curve[picked].toFixed(3)}`), said];
  if (text.latents) {
    const pair = make("div", "", { class: "pair" });
    for (const side of ["base", "tuned"]) {
      const box = make("div");
      const list = make("ol");
      for (const [latent, activation] of text.latents[side][picked][at]) {
        list.append(make("li", `latent ${latent}, activation ${activation}`));
      }
      box.append(make("h4", `strongest latents in the ${side} model`), list.children.length ? list : make("p", "none is active", { class: "soft" }));
      pair.append(box);
    }
    parts.push(pair);
  }
  target.replaceChildren(...parts);
}

function showLatents() {
  const all = [...document.querySelectorAll(".latent")];
  if (!all.length) {
    return;
  }
  const only = $("latent-picked").checked;
  const fate = $("latent-fate").value;
  for (const one of all) {
    one.hidden = (only && Number(one.dataset.of) !== picked) || (fate && one.dataset.fate !== fate);
  }
  const left = all.filter((one) => !one.hidden).length;
  $("latent-count").textContent = `${left} of ${all.length} latents` + (left ? "" : only ? `: none of layer ${picked} changed more than the noise floor` : "");
}

$("layer").addEventListener("input", (event) => pick(event.target.value));
for (const id of ["latent-picked", "latent-fate"]) {
  $(id)?.addEventListener("change", showLatents);
}
document.querySelectorAll("tr[data-layer]").forEach((row) => row.addEventListener("click", () => pick(row.dataset.layer)));
drawn = (id, view) => {
  for (const kind of ["mousemove", "click"]) {
    view.addEventListener(kind, (_event, item) => {
      const layer = item?.datum?.layer ?? item?.datum?.tuned;
      if (typeof layer === "number" && layer !== picked && layer <= last) {
        pick(layer);
      }
    });
  }
  mark(id, view);
};

tokens();
pick(picked);
showFigures("drift");
