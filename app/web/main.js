/** The page: what is dropped, pasted or picked becomes a document; addresses after `#/` name the one shown. */

import * as api from "./api.js";
import { announce, el, plural } from "./dom.js";
import { DocumentView, optionFields, optionsOf } from "./document-view.js";
import { Jobs } from "./jobs.js";

const READY_POLL_MS = 2000;
const JOB_ID = /^[0-9a-f]{32}$/;
const SHORT = {
  waiting: "waiting",
  sending: "sending",
  queued: "queued",
  running: "reading",
  succeeded: "",
  partial: "in part",
  failed: "failed",
  cancelled: "cancelled",
};

const find = (id) => document.getElementById(id);
const jobs = new Jobs();
const settings = { boxes: true, tokens: false, images: true };
let modes = [];
let view = null;
let leaving = new AbortController();

/** Show the document that the address names, or the place to add one. */
function route() {
  const name = location.hash.replace(/^#\/?/, "");
  const job = jobs.find(name) ?? (JOB_ID.test(name) ? jobs.known(name) : null);
  if (job && view?.job === job) return;
  leaving.abort(new DOMException("left", "AbortError"));
  leaving = new AbortController();
  view?.close();
  view = null;
  document.body.classList.toggle("has-document", Boolean(job));
  document.title = job ? `${job.name} - rtprune` : "rtprune";
  list();
  if (!job) {
    find("document").replaceChildren();
    return;
  }
  view = new DocumentView(job, {
    modes,
    settings,
    onCancel: () => stop(job),
    onAgain: (file, options) => show(jobs.add(file, options)),
  });
  find("document").replaceChildren(view.node);
  view.title.focus({ preventScroll: true });
  scrollTo(0, 0);
  if (!job.isWhole) jobs.follow(job, leaving.signal);
  jobs.poll();
  // it gets its id while it is shown, and with it an address that can be kept
  job.addEventListener("accepted", () => view?.job === job && history.replaceState(null, "", job.address), {
    once: true,
  });
}

function show(job) {
  if (location.hash === job.address) route();
  else location.hash = job.address;
}

async function stop(job) {
  try {
    await jobs.cancel(job);
  } catch (error) {
    job.change({ error: error.message });
  }
}

function addAll(files) {
  const added = [...files].map((file) => jobs.add(file, optionsOf(find("options"))));
  if (!added.length) return;
  announce(`${plural(added.length, "document")} added`);
  show(added[0]);
}

/** The list of documents. An entry changes with its job; the list itself only when one comes or goes. */
function list() {
  const current = view?.job ?? jobs.find(location.hash.replace(/^#\/?/, ""));
  find("history").replaceChildren(...jobs.all.map((job) => entry(job, job === current)));
  find("history-empty").hidden = jobs.all.length > 0;
  find("forget").hidden = jobs.all.length === 0;
}

function entry(job, isCurrent) {
  const state = el("span", { class: "entry-state" });
  const link = el(
    "a",
    { href: job.address, "aria-current": isCurrent ? "page" : null },
    el("span", { class: "entry-name" }, job.name),
    state,
  );
  const update = () => {
    const parts = [
      job.isOpen || !job.total ? "" : plural(job.total, "page"),
      job.asked,
      SHORT[job.status] ?? job.status,
    ];
    state.textContent = parts.filter(Boolean).join(", ");
    state.className = `entry-state is-${job.status}`;
    link.setAttribute("href", job.address);
  };
  update();
  const node = el(
    "li",
    {},
    link,
    el(
      "button",
      {
        type: "button",
        class: "remove",
        "aria-label": `Remove ${job.name} from this list`,
        onclick: () => forget(job),
      },
      "\u00d7",
    ),
  );
  const changed = () => (node.isConnected ? update() : job.removeEventListener("change", changed));
  queueMicrotask(() => job.addEventListener("change", changed));
  return node;
}

function forget(job) {
  const isShown = view?.job === job;
  jobs.remove(job);
  if (isShown) location.hash = "";
  find("add").focus();
}

/** Ask for a key once, however many requests wait for one. */
let asking = null;
function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = find("key-dialog");
    find("key-refused").hidden = !api.key.get();
    find("key").value = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        const given = dialog.returnValue === "use" ? find("key").value.trim() : "";
        if (given) api.key.set(given);
        resolve(Boolean(given));
      },
      { once: true },
    );
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}

/** Say whether pages can be read now, and learn the model's modes. */
async function watchService() {
  for (;;) {
    const said = await api
      .readiness()
      .catch(() => ({ ready: false, detail: "The service cannot be reached" }));
    find("service").textContent = said.ready ? said.model : (said.detail ?? "The model is not loaded yet");
    find("service").classList.toggle("is-ready", said.ready);
    if (said.ready) {
      modes = said.modes;
      find("options-fields").replaceChildren(...optionFields(modes));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, READY_POLL_MS));
  }
}

function listen() {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("hashchange", route);
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("is-dragging");
  });
  addEventListener(
    "dragleave",
    (event) => !event.relatedTarget && document.body.classList.remove("is-dragging"),
  );
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.remove("is-dragging");
    addAll(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    addAll(event.clipboardData.files);
  });
  find("file").addEventListener("change", ({ target }) => {
    addAll(target.files);
    target.value = ""; // the same file may be picked again
  });
  find("options").addEventListener("submit", (event) => event.preventDefault());
  find("forget").addEventListener("click", () => {
    for (const job of [...jobs.all]) if (!job.isOpen) jobs.remove(job);
    if (!view || !jobs.all.includes(view.job)) location.hash = "";
  });
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault(); // no form of this page goes anywhere
    find("key-dialog").close("use");
  });
  find("key-cancel").addEventListener("click", () => find("key-dialog").close());
  jobs.addEventListener("change", list);
}

api.onUnauthorized.ask = askForKey;
find("options-fields").replaceChildren(...optionFields(modes));
listen();
route();
watchService();
jobs.poll();
