// A folder as one zip without compression: weights hardly shrink, and the browser need not hold them in memory.

const LIMIT = 2 ** 32 - 1;
const SKIPPED = /(^|\/)\.|\.(bin|pt|pth|ckpt|h5|msgpack|onnx)$/; // hidden, or weights that the service refuses

const TABLE = new Uint32Array(256).map((_, number) => {
  let value = number;
  for (let bit = 0; bit < 8; bit += 1) {
    value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return value;
});

// files: [{path, file}]. heard(share) is told how much has been read.
export async function zipped(files, name, heard) {
  const kept = files.filter(({ path }) => !SKIPPED.test(path));
  const total = kept.reduce((sum, { file }) => sum + file.size, 0);
  if (!kept.length) {
    throw new Error(`${name} contains no file that a checkpoint needs`);
  }
  if (total > LIMIT) {
    throw new Error(`${name} is larger than 4 GB; upload it with the command line: layerdrift upload`);
  }
  const parts = [];
  const directory = [];
  let offset = 0;
  let read = 0;
  for (const { path, file } of kept) {
    const sum = await crc(file, (bytes) => heard((read += bytes) / Math.max(1, total)));
    const title = new TextEncoder().encode(path);
    const fields = entry(sum, file.size, title.length);
    parts.push(header(0x04034b50, [20], fields), title, file);
    directory.push(header(0x02014b50, [20, 20], fields, [0, 0, 0], [0, offset]), title);
    offset += 30 + title.length + file.size;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = new DataView(new ArrayBuffer(22));
  [0x06054b50, 0, kept.length | (kept.length << 16), size, offset].forEach((value, index) => end.setUint32(4 * index, value, true));
  return new File([...parts, ...directory, end.buffer], `${name}.zip`, { type: "application/zip" });
}

// What both kinds of headers say of a file: flags (UTF-8 names), method, date, sum, sizes, and the length of its name.
function entry(sum, size, length) {
  return { short: [0x0800, 0, 0, 0x21], long: [sum, size, size], tail: [length, 0] };
}

function header(signature, versions, fields, more = [], last = []) {
  const shorts = [...versions, ...fields.short];
  const tail = [...fields.tail, ...more];
  const view = new DataView(new ArrayBuffer(4 + 2 * shorts.length + 12 + 2 * tail.length + 4 * last.length));
  let at = 0;
  const put = (value, bytes) => {
    bytes === 2 ? view.setUint16(at, value, true) : view.setUint32(at, value >>> 0, true);
    at += bytes;
  };
  put(signature, 4);
  shorts.forEach((value) => put(value, 2));
  fields.long.forEach((value) => put(value, 4));
  tail.forEach((value) => put(value, 2));
  last.forEach((value) => put(value, 4));
  return new Uint8Array(view.buffer);
}

async function crc(file, heard) {
  let value = 0xffffffff;
  const reader = file.stream().getReader();
  for (;;) {
    const { value: chunk, done } = await reader.read();
    if (done) {
      return (value ^ 0xffffffff) >>> 0;
    }
    for (const byte of chunk) {
      value = (value >>> 8) ^ TABLE[(value ^ byte) & 0xff];
    }
    heard(chunk.length);
  }
}
