/** The service's HTTP API. Every address is relative to the page, so a path prefix makes no difference. */

import { wait } from "./dom.js";

const KEY = "rtprune.key";
const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 8000;
const SILENCE_MS = 45_000; // the service says something every 15 s
const BUSY = new Set([429, 503]);
const MAX_BUSY_TRIES = 30;

/** What the service answered instead: `code`, `detail` and `status` of its problem document. */
export class Problem extends Error {
  constructor(status, { code = "", detail = "", title = "" } = {}, retryAfterS = 0) {
    super(detail || title || `The service answered ${status}`);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** An API key, of this tab alone: it is gone when the tab is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

/** Set by the page: asks the person for a key, and resolves to whether there is a new one. */
export const onUnauthorized = { ask: async () => false };

export const at = (path) => new URL(path, document.baseURI);

const headers = (more = {}) => (key.get() ? { ...more, Authorization: `Bearer ${key.get()}` } : more);

/** Send a request, with the key if there is one; ask for a key where one is needed. Throw a `Problem`. */
export async function ask(path, { method = "GET", signal, ...rest } = {}) {
  for (;;) {
    const response = await fetch(at(path), { method, signal, headers: headers(rest.headers) });
    if (response.ok) return response;
    if (response.status === 401 && (await onUnauthorized.ask())) continue;
    throw await problemOf(response);
  }
}

async function problemOf(response) {
  const said = await response.json().catch(() => ({}));
  return new Problem(response.status, said, Number(response.headers.get("Retry-After")) || 0);
}

/** Send a document. `onProgress` gets the share that was sent, `onBusy` the seconds until the next try. */
export async function submit(file, options, { onProgress, onBusy, signal }) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await send(file, options, onProgress, signal);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401 && (await onUnauthorized.ask())) continue;
      if (!BUSY.has(error.status) || tries === MAX_BUSY_TRIES) throw error;
      const seconds = Math.min(Math.max(error.retryAfterS, 1), 60);
      onBusy(seconds);
      await wait(seconds * 1000, signal);
    }
  }
}

/** One try. XMLHttpRequest, for fetch does not tell how much was sent. */
function send(file, options, onProgress, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries(options)) form.append(name, value);
  form.append("file", file);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", at("v1/jobs"));
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => {
      if (request.status === 202) resolve(request.response);
      else {
        const after = Number(request.getResponseHeader("Retry-After")) || 0;
        reject(new Problem(request.status, request.response ?? {}, after));
      }
    };
    request.onerror = () => reject(new Error("The service cannot be reached"));
    request.onabort = () => reject(signal.reason);
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

export const job = async (id, signal) => (await ask(`v1/jobs/${id}`, { signal })).json();
export const cancel = async (id) => (await ask(`v1/jobs/${id}`, { method: "DELETE" })).json();
export const pageImage = async (id, index, signal) =>
  (await ask(`v1/jobs/${id}/pages/${index + 1}/image`, { signal })).blob();
export const figure = async (id, name, signal) =>
  (await ask(`v1/jobs/${id}/images/${encodeURIComponent(name)}`, { signal })).blob();
export const result = async (id, format) => (await ask(`v1/jobs/${id}/result?format=${format}`)).blob();

/** Whether the model is loaded, and its modes; nothing of it needs a key. */
export async function readiness() {
  const response = await fetch(at("readyz"));
  const said = await response.json();
  return response.ok ? { ready: true, ...said } : { ready: false, phase: said.phase, detail: said.detail };
}

/**
 * Follow a job: yield `{ event, data }` for each page, then for its end. Each page comes once, whatever
 * happens to the connection: it is opened again with the id of the last event. EventSource would do that,
 * but sends no key.
 */
export async function* events(id, signal) {
  let last = "0";
  let delay = FIRST_RETRY_MS;
  for (;;) {
    try {
      for await (const message of stream(`v1/jobs/${id}/events`, last, signal)) {
        delay = FIRST_RETRY_MS;
        last = message.id || last;
        yield { event: message.event, data: JSON.parse(message.data) };
        if (message.event === "end") return;
      }
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof Problem && !BUSY.has(error.status)) throw error;
    }
    await wait(delay, signal);
    delay = Math.min(delay * 2, MAX_RETRY_MS);
  }
}

/** One connection's events. It ends when the connection does, or when nothing was heard for too long. */
async function* stream(path, last, signal) {
  const quiet = new AbortController();
  let timer = setTimeout(() => quiet.abort(), SILENCE_MS);
  const response = await ask(path, {
    signal: AbortSignal.any([signal, quiet.signal]),
    headers: { Accept: "text/event-stream", "Last-Event-ID": last },
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => quiet.abort(), SILENCE_MS);
      text = (text + value).replaceAll("\r\n", "\n");
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const message = messageOf(part);
        if (message.data) yield message;
      }
    }
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(() => {});
  }
}

function messageOf(text) {
  const message = { id: "", event: "message", data: "" };
  for (const line of text.split("\n")) {
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (name === "data") message.data += message.data ? `\n${value}` : value;
    else if (name === "id" || name === "event") message[name] = value;
  }
  return message;
}
