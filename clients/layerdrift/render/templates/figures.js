// Figures of a page in its colours, drawn when they are near; contents and downloads. Data are in the page as JSON.
const data = JSON.parse(document.getElementById("data").textContent);
const views = {};

const $ = (id) => document.getElementById(id);
const number = (value, digits = 4) => (value === null || value === undefined ? "—" : Number(value).toFixed(digits));

function make(tag, text, given = {}) {
  const element = document.createElement(tag);
  element.textContent = text ?? "";
  Object.entries(given).forEach(([name, value]) => element.setAttribute(name, value));
  return element;
}

// Charts take the colours of the page, light or dark.
const dark = matchMedia("(prefers-color-scheme: dark)");

const BELOW = { orient: "bottom", direction: "vertical", columns: 2, layout: { bottom: { direction: "vertical", anchor: "start" } } };

// A figure in the colours of the page, no wider than a phone where it is read on one.
function themed(spec) {
  const { axis, legend, ...others } = theme();
  const room = document.documentElement.clientWidth - 110;
  const tooWide = spec.width > room;
  const config = { ...spec.config, ...others, axis: { ...spec.config?.axis, ...axis }, legend: { ...spec.config?.legend, ...legend, ...(tooWide ? BELOW : {}) } };
  return { ...spec, config, ...(tooWide ? { width: room } : {}) };
}

function theme() {
  const of = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const [ink, soft, line] = [of("--ink"), of("--soft"), of("--line")];
  const axis = { labelColor: soft, titleColor: ink, gridColor: line, domainColor: soft, tickColor: soft };
  const title = { color: ink, subtitleColor: soft };
  return { background: "transparent", axis, legend: { labelColor: soft, titleColor: ink }, header: { labelColor: ink, titleColor: ink }, title };
}

// What a page does with a figure that was just drawn.
let drawn = () => {};

function draw(id) {
  near.unobserve($(id));
  vegaEmbed("#" + id, themed(data.specs[id]), { actions: false, renderer: "svg" }).then(({ view }) => {
    views[id] = view;
    drawn(id, view);
    $(id).nextElementSibling?.matches(".downloads") || $(id).after(downloads(id));
  });
}

function downloads(id) {
  const line = make("p", "", { class: "downloads" });
  const png = make("button", "PNG", { type: "button", "aria-label": `Download ${id} as PNG` });
  png.addEventListener("click", () => views[id].toImageURL("png", 2).then((url) => save(url, `${id}.png`)));
  const csv = make("button", "CSV", { type: "button", "aria-label": `Download the data of ${id} as CSV` });
  csv.addEventListener("click", () => save(URL.createObjectURL(new Blob([table(data.specs[id])], { type: "text/csv" })), `${id}.csv`));
  line.append(png, csv);
  return line;
}

function save(url, name) {
  const link = make("a", "", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

// All rows that a figure is drawn from; of several tables the columns of all.
function table(spec) {
  const rows = Object.values(spec.datasets ?? {}).flat();
  const found = rows.length ? rows : valuesIn(spec);
  const columns = [...new Set(found.flatMap((row) => Object.keys(row)))];
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r\n]/.test(text) ? `'${text}` : text; // a formula to a spreadsheet
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [columns.map(cell).join(","), ...found.map((row) => columns.map((column) => cell(row[column])).join(","))].join("\n") + "\n";
}

function valuesIn(spec) {
  const own = spec.data?.values ?? [];
  return [...own, ...[...(spec.layer ?? []), ...(spec.spec ? [spec.spec] : [])].flatMap(valuesIn)];
}

// figures that cannot be seen yet wait until they are near
const near = new IntersectionObserver((seen) => {
  for (const one of seen) {
    if (one.isIntersecting) {
      draw(one.target.id);
    }
  }
}, { rootMargin: "600px" });
// What the page holds, for those who read one part of it.
function contents() {
  for (const section of document.querySelectorAll("section[id]")) {
    const title = section.getAttribute("aria-label") ?? section.querySelector("h2")?.textContent;
    const link = make("a", title, { href: `#${section.id}` });
    link.addEventListener("click", (event) => {
      event.preventDefault(); // inside a frame an address would lead elsewhere
      section.scrollIntoView();
    });
    const item = make("li");
    item.append(link);
    $("contents").append(item);
  }
  document.querySelector("nav.contents details").open = innerWidth >= 1240;
}

// Draws the first figure now, the others when they are near, and all of them for paper.
function showFigures(first) {
  document.documentElement.classList.toggle("framed", parent !== window);
  dark.addEventListener("change", () => Object.keys(views).forEach(draw));
  contents();
  Object.keys(data.specs).forEach((id) => (id === first ? draw(id) : near.observe($(id))));
  addEventListener("beforeprint", () => Object.keys(data.specs).filter((id) => !views[id]).forEach((id) => draw(id)));
}
