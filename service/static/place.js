// A field for a model or a data set: a URI, something the service has at hand, or a file or folder that is dropped.

import { Problem, upload } from "./api.js";
import { h, say } from "./dom.js";
import { field } from "./fields.js";
import { zipped } from "./zip.js";

// options: {accept, hint, folder}. changed() is called when the URI is another one.
export function place(title, pointer, { accept, hint, folder }, changed) {
  const list = h("datalist", { id: `${pointer.replaceAll("/", "-")}-known` });
  const text = field(title, pointer, h("input", { type: "text", spellcheck: "false", autocomplete: "off", list: list.id }), hint);
  const file = h("input", { type: "file", accept, class: "hidden", tabindex: -1, "aria-label": `${title}: file` });
  const directory = folder ? h("input", { type: "file", webkitdirectory: true, class: "hidden", tabindex: -1, "aria-label": `${title}: folder` }) : null;
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": `${title}: upload` });
  const button = (label, input) => h("button", { type: "button", class: "plain small", onclick: () => input.click() }, label);
  const drop = h(
    "div",
    { class: "drop" },
    h("span", { class: "soft" }, folder ? "Drop a folder or a zip here, or choose " : "Drop a file here, or choose "),
    folder ? [button("a folder", directory), " ", button("a zip", file)] : button("a file", file),
    bar,
  );
  text.whole.append(list, drop, file, ...(directory ? [directory] : []));
  text.busy = null;

  async function take(files, name) {
    if (!files.length) {
      return;
    }
    text.error.textContent = "";
    bar.hidden = false;
    text.busy = sent(files, name);
    try {
      text.input.value = (await text.busy).uri;
      say(`${name} uploaded`);
      changed();
    } catch (error) {
      text.error.textContent = error.message;
      if (!(error instanceof Problem) && !(error instanceof Error)) {
        throw error;
      }
    } finally {
      text.busy = null;
      bar.hidden = true;
    }
  }

  // Zipping is the first tenth of the bar.
  async function sent(files, name) {
    say(`uploading ${name}`);
    const single = files.length === 1 && !files[0].path.includes("/");
    const one = single ? files[0].file : await zipped(files, name, (share) => (bar.value = 0.1 * share));
    return upload(one, (share) => (bar.value = 0.1 + 0.9 * share));
  }

  file.addEventListener("change", () => take([...file.files].map((one) => ({ path: one.name, file: one })), file.files[0]?.name));
  directory?.addEventListener("change", () => {
    const files = [...directory.files].map((one) => ({ path: one.webkitRelativePath, file: one }));
    take(files, files[0]?.path.split("/")[0]);
  });
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const [entry] = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (entry?.isDirectory && !folder) {
      text.error.textContent = "this is a folder; drop one file";
    } else if (entry) {
      take(await inside(entry, ""), entry.name);
    }
  });
  text.offer = (sources) => list.replaceChildren(...sources.map((one) => h("option", { value: one.uri }, `${one.name} (${KINDS[one.kind]})`)));
  text.uri = () => text.input.value.trim();
  text.input.addEventListener("change", changed);
  return text;
}

const KINDS = { folder: "folder", file: "file", checkpoint: "from an earlier analysis", upload: "uploaded", registered: "registry" };

// All files of an entry that was dropped, with their paths.
async function inside(entry, before) {
  const path = before ? `${before}/${entry.name}` : entry.name;
  if (entry.isFile) {
    return [{ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a directory is read in parts
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) {
      return (await Promise.all(found.map((one) => inside(one, path)))).flat();
    }
    found.push(...some);
  }
}
