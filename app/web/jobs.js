/** The documents of this browser: what is being sent, read and kept, and what is remembered of it. */

import * as api from "./api.js";

const HISTORY = "rtprune.jobs";
const MAX_REMEMBERED = 50;
const POLL_MS = 2500;
const REMEMBER_MS = 300;
const AT_A_TIME = 2; // uploads
const OPEN = new Set(["waiting", "sending", "queued", "running"]);
const SHOWN_OPTIONS = ["mode", "prune", "keep_ratio", "pages"];

/** One document: a job of the service, or what is to become one. `change` is sent when anything changes. */
export class Job extends EventTarget {
  constructor(fields) {
    super();
    this.id = null;
    this.name = "Document";
    this.options = {};
    this.status = "waiting";
    this.createdAt = Date.now();
    this.total = 0;
    this.done = 0;
    this.position = null;
    this.sent = 0;
    this.note = "";
    this.error = "";
    this.model = "";
    this.runningS = null;
    this.pages = new Map();
    this.file = null;
    this.isGone = false;
    this.isWhole = false; // all of its pages and its end were received
    Object.assign(this, fields);
    this.leaving = new AbortController();
  }

  get isOpen() {
    return OPEN.has(this.status);
  }

  /** Where the page shows it. A document that has no id yet has a number of this tab's. */
  get address() {
    return `#/${this.id ?? this.number}`;
  }

  change(fields = {}, kind = "change") {
    Object.assign(this, fields);
    this.dispatchEvent(new CustomEvent(kind, { detail: fields }));
  }

  /** Take what the service says of the job. */
  take(said) {
    this.change({
      status: said.status,
      total: said.pages.total,
      done: said.pages.done,
      position: said.queue_position ?? null,
      runningS: said.timings?.running_s ?? null,
      error: said.error?.detail ?? "",
      note: "",
    });
  }

  /** Take a page of an event. */
  takePage(page) {
    this.pages.set(page.index, page);
    this.change({
      done: Math.max(this.done, this.pages.size),
      status: this.isOpen ? "running" : this.status,
    });
    this.dispatchEvent(new CustomEvent("page", { detail: page }));
  }

  /** What was asked for beside the defaults: "base, keep 0.5". */
  get asked() {
    const { mode, prune, keep_ratio: ratio, pages } = this.options;
    return [mode, prune === "none" && "not pruned", ratio && `keep ${ratio}`, pages && `pages ${pages}`]
      .filter(Boolean)
      .join(", ");
  }

  get remembered() {
    return {
      id: this.id,
      name: this.name,
      options: this.options,
      status: this.status,
      createdAt: this.createdAt,
      total: this.total,
    };
  }
}

/** All of them, newest first. `change` is sent when one is added or taken away. */
export class Jobs extends EventTarget {
  constructor() {
    super();
    this.all = recall().map((fields) => this.watched(new Job(fields)));
    this.forgotten = new Set();
    this.numSending = 0;
    addEventListener("pagehide", () => this.store());
    this.counter = 0;
  }

  watched(job) {
    job.addEventListener("change", () => this.remember());
    return job;
  }

  find(key) {
    return this.all.find((job) => job.id === key || job.number === key);
  }

  /** A document to be sent, with the options of its form. */
  add(file, options) {
    const shown = Object.fromEntries(
      SHOWN_OPTIONS.filter((name) => options[name]).map((name) => [name, options[name]]),
    );
    this.counter += 1;
    const job = this.watched(
      new Job({ name: file.name || "Pasted image", file, options: shown, number: `new-${this.counter}` }),
    );
    this.put(job);
    this.sendNext();
    return job;
  }

  /** A job that somebody gave the address of. */
  known(id) {
    const job = this.watched(new Job({ id, name: `Job ${id.slice(0, 8)}`, status: "queued" }));
    this.put(job);
    return job;
  }

  put(job) {
    this.all.unshift(job);
    this.remember();
    this.dispatchEvent(new Event("change"));
  }

  remove(job) {
    job.leaving.abort(new DOMException("left", "AbortError"));
    this.all = this.all.filter((each) => each !== job);
    this.forgotten.add(job.id);
    this.remember();
    this.dispatchEvent(new Event("change"));
  }

  sendNext() {
    const next = this.all.findLast((job) => job.status === "waiting" && job.file);
    if (!next || this.numSending >= AT_A_TIME) return;
    this.numSending += 1;
    this.send(next).finally(() => {
      this.numSending -= 1;
      this.sendNext();
    });
    this.sendNext();
  }

  async send(job) {
    job.change({ status: "sending", sent: 0, error: "", note: "" });
    try {
      const said = await api.submit(
        job.file,
        { ...job.options, tokens: "detail" },
        {
          signal: job.leaving.signal,
          onProgress: (sent) => job.change({ sent, note: "" }),
          onBusy: (seconds) => job.change({ note: `The service is busy; trying again in ${seconds} s` }),
        },
      );
      const known = this.all.find((each) => each !== job && each.id === said.id);
      if (known) this.remove(known); // the same document with the same options is the same job
      job.id = said.id;
      job.take(said);
      job.dispatchEvent(new Event("accepted"));
      this.poll();
    } catch (error) {
      if (job.leaving.signal.aborted) job.change({ status: "cancelled" });
      else job.change({ status: "failed", error: error.message });
    }
  }

  async cancel(job) {
    if (!job.id) {
      job.leaving.abort(new DOMException("cancelled", "AbortError"));
      job.change({ status: "cancelled" });
      return;
    }
    job.take(await api.cancel(job.id));
  }

  /** Get the pages of one job as they are read, and of no other: a browser has few connections to a host. */
  async follow(job, signal) {
    if (!job.id) await new Promise((resolve) => job.addEventListener("accepted", resolve, { once: true }));
    if (signal.aborted) return;
    try {
      if (!job.total) job.take(await api.job(job.id, signal));
      for await (const { event, data } of api.events(job.id, signal)) {
        if (event === "page") job.takePage(data);
        else if (event === "end") {
          job.isWhole = true;
          job.take(data);
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      job.change({ error: error.message, isGone: error.status === 404 || error.status === 410 });
      if (job.isGone && job.isOpen) job.change({ status: "failed" });
    }
  }

  /** See how they are doing, now and then: the one that is followed tells of its pages alone. */
  async poll() {
    if (this.polling) return;
    this.polling = true;
    for (;;) {
      const unended = this.all.filter((job) => job.id && job.isOpen && !job.isGone);
      if (!unended.length) break;
      for (const job of unended) {
        try {
          const said = await api.job(job.id);
          if (!job.isWhole) job.take(said); // else it ended meanwhile, and this is old
        } catch (error) {
          if (error.status === 404 || error.status === 410)
            job.change({ status: "failed", isGone: true, error: error.message });
          if (error.status === 401) {
            this.polling = false; // nobody gave a key, and is not to be asked again and again
            return;
          }
        }
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    this.polling = false;
  }

  /** Keep them for the next time, soon: pages come fast. */
  remember() {
    this.remembering ??= setTimeout(() => this.store(), REMEMBER_MS);
  }

  store() {
    clearTimeout(this.remembering);
    this.remembering = undefined;
    const own = this.all.filter((job) => job.id && !job.isGone).map((job) => job.remembered);
    const ids = new Set(this.all.map((job) => job.id));
    // other tabs have documents, too
    const others = recall().filter(({ id }) => !ids.has(id) && !this.forgotten.has(id));
    const kept = [...own, ...others].sort((one, other) => other.createdAt - one.createdAt);
    try {
      localStorage.setItem(HISTORY, JSON.stringify(kept.slice(0, MAX_REMEMBERED)));
    } catch {
      // full or forbidden: this tab knows them all the same
    }
  }
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(HISTORY) ?? "[]");
    return Array.isArray(kept)
      ? kept.filter((job) => typeof job?.id === "string" && typeof job.name === "string")
      : [];
  } catch {
    return [];
  }
}
