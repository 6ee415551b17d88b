// Elements and small charts. Texts always go in as text: nothing of the user's becomes markup.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, given = {}, ...inside) {
  return filled(document.createElement(tag), given, inside);
}

export function s(tag, given = {}, ...inside) {
  return filled(document.createElementNS(SVG, tag), given, inside);
}

function filled(element, given, inside) {
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
  element.append(...inside.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

export function say(text) {
  document.getElementById("said").textContent = text;
}

export function when(text) {
  return new Date(text).toLocaleString(undefined, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", timeZoneName: "short" });
}

export function ago(text) {
  const seconds = (Date.now() - new Date(text)) / 1000;
  return seconds < 60 ? "just now" : `${duration(seconds)} ago`;
}

// A time for people: 40 s, 3 min, 2 h 10 min.
export function duration(seconds) {
  if (seconds < 90) {
    return `${Math.max(1, Math.round(seconds))} s`;
  }
  if (seconds < 595) {
    const tens = Math.round(seconds / 10);
    return `${Math.floor(tens / 6)} min${tens % 6 ? ` ${(tens % 6) * 10} s` : ""}`;
  }
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) {
    return `${minutes} min`;
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

export function fixed(value, digits = 3) {
  if (value === null || value === undefined) {
    return "—";
  }
  return Number.isInteger(value) && Math.abs(value) > 1 ? String(value) : value.toFixed(digits);
}

// A curve as small as a word; its words are for those who do not see it.
export function spark(values) {
  const [width, height] = [130, 34];
  const top = Math.max(...values, 1e-9);
  const x = (index) => 2 + ((width - 4) * index) / Math.max(1, values.length - 1);
  const y = (value) => height - 2 - ((height - 4) * Math.max(0, value)) / Math.max(1, top);
  const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const last = values.at(-1);
  const label = `drift from ${values[0].toFixed(3)} at the embeddings to ${last.toFixed(3)} at the last layer`;
  return s(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    s("line", { class: "axis", x1: 2, x2: width - 2, y1: height - 2, y2: height - 2 }),
    s("polyline", { points, fill: "none", stroke: "var(--accent)", "stroke-width": 2 }),
    s("circle", { cx: x(values.length - 1), cy: y(last), r: 3, fill: "var(--accent)" }),
  );
}

// Lines over a common x axis. series: [{name, colour, dash, points: [[x, y], …]}].
// The round number (1, 2 or 5 times a power of ten) at or above a length, for ticks that can be read.
function niceStep(length) {
  const power = 10 ** Math.floor(Math.log10(length));
  return power * ([1, 2, 5, 10].find((round) => round >= length / power - 1e-9) ?? 10);
}

export function lines({ series, label, xTitle, yTitle, height = 220, fromZero = true }) {
  const width = Math.max(320, Math.min(1100, document.documentElement.clientWidth - 80)); // letters keep their size on a phone
  const [left, right, top, bottom] = [54, 12, 12, 40];
  const all = series.flatMap((one) => one.points);
  if (!all.length) {
    return h("p", { class: "soft" }, "Nothing to draw yet.");
  }
  const xs = all.map((point) => point[0]);
  const ys = all.map((point) => point[1]);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const y0 = fromZero ? Math.min(0, ...ys) : Math.min(...ys);
  const step = niceStep((Math.max(...ys) - y0) / 4 || 0.25);
  const y1 = y0 + step * Math.max(1, Math.ceil((Math.max(...ys) - y0) / step - 1e-9));
  const x = (value) => left + ((width - left - right) * (value - x0)) / Math.max(1e-9, x1 - x0);
  const y = (value) => height - bottom - ((height - top - bottom) * (value - y0)) / (y1 - y0);
  const ticks = Array.from({ length: Math.round((y1 - y0) / step) + 1 }, (_, index) => y0 + index * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const stride = Math.max(1, niceStep((x1 - x0) / 8 || 1));
  const marks = Array.from({ length: Math.floor(x1 / stride) - Math.ceil(x0 / stride) + 1 }, (_, index) => (Math.ceil(x0 / stride) + index) * stride);
  const chart = s(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ticks.map((value) => [
      s("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)),
    ]),
    marks.map((value) => s("text", { x: x(value), y: height - bottom + 16, "text-anchor": "middle" }, String(value))),
    s("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, xTitle),
    s("text", { transform: `translate(12 ${(height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle),
    series.map((one) =>
      s("polyline", {
        points: one.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" "),
        fill: "none", stroke: one.colour, "stroke-width": 2, "stroke-dasharray": one.dash ?? "none",
      }),
    ),
  );
  const legend = h(
    "p",
    { class: "soft" },
    series.map((one, index) => [
      index ? " · " : "",
      s(
        "svg",
        { width: 26, height: 8, "aria-hidden": "true" },
        s("line", { x1: 0, x2: 26, y1: 4, y2: 4, stroke: one.colour, "stroke-width": 3, "stroke-dasharray": one.dash ?? "none" }),
      ),
      ` ${one.name}`,
    ]),
  );
  return h("div", {}, chart, series.length > 1 ? legend : null);
}
