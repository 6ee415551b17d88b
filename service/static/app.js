// Which page is shown: the part of the address after # says it. Pages are functions that fill <main>.

import { call, key, Problem } from "./api.js";
import { h, say } from "./dom.js";
import { list } from "./list.js";
import { submit } from "./submit.js";
import { job } from "./job.js";
import { compare } from "./compare.js";
import { inspect } from "./inspect.js";
import { newStudy, studies, study } from "./studies.js";

const PAGES = [
  [/^\/?$/, list, "Analyses"],
  [/^\/new$/, submit, "New analysis"],
  [/^\/a\/([^/]+)$/, job, "Analysis"],
  [/^\/a\/([^/]+)\/inspect$/, inspect, "Inspect texts"],
  [/^\/studies$/, studies, "Studies"],
  [/^\/studies\/new$/, newStudy, "New study"],
  [/^\/s\/([^/]+)$/, study, "Study"],
  [/^\/compare\/(an_[a-z2-7]{26}(?:\/an_[a-z2-7]{26})+)$/, compare, "Compare reports"],
];

const main = document.getElementById("main");
const sign = document.getElementById("sign");
let leaving = new AbortController();
let session = { provider: false, signed_in: false };

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const signal = leaving.signal;
  document.getElementById("connection").hidden = true;
  sign.hidden = key.get() === null && !session.signed_in;
  sign.title = session.signed_in ? `${session.name} (${session.tenant})` : "";
  const path = location.hash.slice(1).split("?")[0];
  const found = PAGES.map(([pattern, page, title]) => [path.match(pattern), page, title]).find(([match]) => match);
  document.body.className = "";
  const view = h("div", { id: "view" });
  main.replaceChildren(view);
  if (!found) {
    document.title = "layerdrift";
    view.append(h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: "#/" }, "All analyses")));
    return;
  }
  const [match, page, title] = found;
  document.title = `${title} · layerdrift`;
  try {
    await page(view, signal, ...match.slice(1).map(decodeURIComponent));
  } catch (error) {
    if (!signal.aborted) {
      fail(view, error);
    }
  }
}

// Who is signed in with a provider. What asks for it fails by itself where the service is away.
async function signedIn() {
  try {
    const answer = await fetch("/auth/session");
    return answer.ok ? await answer.json() : session;
  } catch {
    return session;
  }
}

function fail(view, error) {
  if (error instanceof Problem && (error.status === 401 || error.status === 403)) {
    signIn(view, error);
    return;
  }
  if (!(error instanceof Problem)) {
    throw error;
  }
  view.replaceChildren(
    h("h1", {}, error.title),
    h("p", { class: "error", role: "alert" }, error.message),
    h("p", {}, h("button", { type: "button", onclick: show }, "Try again")),
  );
}

function signIn(view, error) {
  const wrong = error.status === 403 || key.get() !== null;
  const provider = h(
    "p",
    {},
    h("a", { class: "button", href: `/auth/login?page=${encodeURIComponent(location.hash || "#/")}` }, "Sign in with your organisation"),
  );
  const secret = h("input", { type: "password", id: "key", autocomplete: "current-password", required: true });
  const said = h("p", { class: "error", role: "alert" }, wrong ? error.message : "");
  const form = h(
    "form",
    {
      class: "card",
      onsubmit: async (event) => {
        event.preventDefault();
        key.set(secret.value.trim());
        try {
          await call("GET", "/v1/analyses?limit=1");
        } catch (refused) {
          key.forget();
          said.textContent = refused.message;
          secret.select();
          return;
        }
        say("signed in");
        show();
      },
    },
    h("h1", {}, "Sign in"),
    session.provider ? provider : "",
    h("label", { for: "key" }, "API key", secret),
    said,
    h("p", { class: "soft" }, "The key is kept in this tab only. The operator of the service creates keys with: layerdrift keys create"),
    h("button", { type: "submit" }, "Sign in"),
  );
  view.replaceChildren(form);
  secret.focus();
}

sign.addEventListener("click", async () => {
  key.forget();
  if (session.signed_in) {
    await fetch("/auth/logout", { method: "POST" });
    session = await signedIn();
  }
  location.hash = "#/";
  show();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // what stands after # is a page's address
  main.focus();
});
session = await signedIn(); // pages are shown from then on, each once
addEventListener("hashchange", () => {
  show();
  main.focus();
});
show();
