// The service's API: one place that knows of keys, problems and event streams.

const KEY = "layerdrift-key";
const RETRY_MS = 1500;

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? `the service answered ${status}`);
    this.status = status;
    this.errors = body.errors ?? [];
    this.title = body.title ?? "Error";
  }
}

// For this tab alone: a key is not left on the machine.
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (secret) => sessionStorage.setItem(KEY, secret),
  forget: () => sessionStorage.removeItem(KEY),
};

function headers(more = {}) {
  const secret = key.get();
  return secret ? { ...more, Authorization: `Bearer ${secret}` } : more;
}

async function answered(response) {
  if (response.ok) {
    return response;
  }
  let body = {};
  try {
    body = await response.json();
  } catch {
    body = { detail: `the service answered ${response.status}` };
  }
  throw new Problem(response.status, body);
}

export async function call(method, path, body, accept = "application/json") {
  const given = { method, headers: headers({ Accept: accept }) };
  if (body !== undefined) {
    given.body = JSON.stringify(body);
    given.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, given);
  } catch {
    throw new Problem(0, { title: "No connection", detail: "the service could not be reached; is it running?" });
  }
  await answered(response);
  return accept === "application/json" && response.status !== 204 ? response.json() : response.text();
}

// Sends a file's bytes; heard(share) is told how far it is. XMLHttpRequest, since fetch tells nothing of uploads.
export async function upload(file, heard) {
  const announced = await call("POST", "/v1/uploads", { filename: file.name, bytes: file.size });
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", `/v1/uploads/${announced.id}`);
    for (const [name, value] of Object.entries(headers())) {
      request.setRequestHeader(name, value);
    }
    request.upload.onprogress = (event) => heard(event.loaded / Math.max(1, file.size));
    request.onload = () => {
      let body = {};
      try {
        body = JSON.parse(request.responseText);
      } catch {
        body = { detail: `the upload was answered ${request.status}` };
      }
      if (request.status < 300) {
        resolve(body);
      } else {
        reject(new Problem(request.status, body));
      }
    };
    request.onerror = () => reject(new Problem(0, { detail: "the upload broke off; try it again" }));
    request.send(file);
  });
}

// Follows an analysis until it has ended. A stream that breaks off is taken up after the last event that came.
// on.event(name, data), on.lost() and on.back() are told; signal ends it.
export async function follow(path, on, signal) {
  let last = null;
  let lost = false;
  while (!signal.aborted) {
    try {
      const response = await fetch(path, { headers: headers(last ? { "Last-Event-ID": last } : {}), signal });
      await answered(response);
      if (lost) {
        lost = false;
        on.back();
      }
      for await (const event of events(response.body)) {
        last = event.id ?? last;
        on.event(event.name, event.data);
        if (event.name === "done") {
          return;
        }
      }
    } catch (error) {
      if (signal.aborted) {
        return;
      }
      if (error instanceof Problem && error.status !== 503) {
        throw error;
      }
    }
    if (!lost && !signal.aborted) {
      lost = true;
      on.lost();
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    pending += value;
    let end;
    while ((end = pending.indexOf("\n\n")) >= 0) {
      const event = { name: "message", id: null, data: null };
      for (const line of pending.slice(0, end).split("\n")) {
        const colon = line.indexOf(": ");
        const [name, text] = [line.slice(0, colon), line.slice(colon + 2)];
        if (name === "event") {
          event.name = text;
        } else if (name === "id") {
          event.id = text;
        } else if (name === "data") {
          event.data = JSON.parse(text);
        }
      }
      pending = pending.slice(end + 2);
      if (event.data !== null) {
        yield event;
      }
    }
  }
}
