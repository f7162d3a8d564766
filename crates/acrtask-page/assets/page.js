// The script of the web page. Every page works without it. It updates open pages, follows logs,
// counts times on and copies texts. Foreign text enters the page through `textContent` only;
// fragments are rendered and escaped by the server.

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("acrtask", { createHTML: (html) => html })
  : { createHTML: (html) => html };

const byId = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// ---- Times

const skew = Number(document.documentElement.dataset.now || Date.now()) - Date.now();
const now = () => Date.now() + skew;
const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

function age(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

function duration(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function showTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const at = Date.parse(time.dateTime);
    const seconds = Math.floor((now() - at) / 1000);
    setText(time, seconds >= 0 ? `${age(seconds)} ago` : `in ${age(-seconds)}`);
    if (!time.dataset.zoned) {
      time.dataset.zoned = "1";
      time.title = `${absolute.format(at)} (${time.title})`;
    }
  }
  for (const running of document.querySelectorAll("[data-since]")) {
    setText(running, duration(now() - Number(running.dataset.since)));
  }
}

// ---- Buttons that need a script

async function copy(button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

function showButtons() {
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = !navigator.clipboard;
  }
  const notify = document.querySelector("button[data-notify]");
  if (notify) notify.hidden = !("Notification" in window);
}

async function requestNotification(button) {
  const answer = await Notification.requestPermission();
  button.textContent = answer === "granted" ? "You will be notified" : "Notifications are blocked";
  button.dataset.notify = answer;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.copy !== undefined) copy(button);
  if (button?.dataset.notify !== undefined) requestNotification(button);
});

// ---- Parts of the page

function replaceFragment({ id, html }) {
  const element = byId(id);
  if (!element) return;
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  // An open form keeps what the user has typed.
  if (focused?.matches("input, select, textarea")) return;
  element.innerHTML = policy.createHTML(html);
}

function apply(update) {
  for (const fragment of update.fragments ?? []) replaceFragment(fragment);
  if (update.title) document.title = update.title;
  if (update.icon) byId("icon").href = update.icon;
  if (update.lines) appendLines(update);
  showTimes();
  showButtons();
  if (update.done) finish(update);
}

function finish(update) {
  const live = byId("log-live");
  if (live) live.textContent = "; the run is finished";
  const notify = document.querySelector("button[data-notify]");
  if (notify?.dataset.notify === "granted") {
    new Notification(update.title ?? document.title);
  }
  if (notify) notify.remove();
}

function status(text) {
  const element = byId("live-status");
  element.textContent = text;
  element.hidden = !text;
}

// ---- Log

const MAX_ROWS = 400;
const log = byId("log");
const isFollowing = log?.dataset.last !== undefined;
let last = Number(log?.dataset.last ?? 0);
let atEnd = false;

function isAtEnd() {
  const page = document.documentElement;
  return page.scrollHeight - page.scrollTop - page.clientHeight < 40;
}

function showFollow() {
  const element = byId("follow");
  if (!element) return;
  element.hidden = false;
  setText(element, atEnd ? "Following the end" : "Scroll to the end to follow");
}

function createRow(line) {
  const row = document.createElement("div");
  row.id = line.id;
  const link = document.createElement("a");
  link.href = `#${line.fragment}`;
  link.textContent = line.label;
  row.append(link, " ");
  for (const [classes, text] of line.pieces) {
    const span = document.createElement("span");
    if (classes) span.className = classes;
    span.textContent = text;
    row.append(span);
  }
  return row;
}

function appendLines(update) {
  if (!log || update.last <= last) return;
  log.append(...update.lines.map(createRow));
  last = update.last;
  while (atEnd && log.childElementCount > MAX_ROWS) log.firstElementChild.remove();
  const shown = byId("log-last");
  if (shown) shown.textContent = String(last);
  if (atEnd) window.scrollTo(0, document.documentElement.scrollHeight);
}

if (isFollowing) {
  const view = new URLSearchParams(location.search);
  if (view.has("tail")) window.scrollTo(0, document.documentElement.scrollHeight);
  atEnd = isAtEnd();
  showFollow();
  document.addEventListener("scroll", () => {
    atEnd = isAtEnd();
    showFollow();
  });
}

// A range of lines: #build:L3-L7.
function markRange() {
  for (const row of document.querySelectorAll(".log .marked")) row.classList.remove("marked");
  const hash = decodeURIComponent(location.hash.slice(1));
  const found = /^(.*:L)(\d+)-L?(\d+)$/.exec(hash);
  if (!found) return;
  const [, step, from, to] = found;
  for (let line = Number(from); line <= Math.min(Number(to), Number(from) + 5000); line += 1) {
    byId(`${step}${line}`)?.classList.add("marked");
  }
  byId(`${step}${from}`)?.scrollIntoView({ block: "center" });
}

log?.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  const start = /^#(.*:L)(\d+)/.exec(decodeURIComponent(location.hash));
  if (!link || !event.shiftKey || !start) return;
  const end = /^#(.*:L)(\d+)$/.exec(decodeURIComponent(link.hash));
  if (!end || end[1] !== start[1]) return;
  event.preventDefault();
  const [low, high] = [Number(start[2]), Number(end[2])].sort((a, b) => a - b);
  location.hash = `${encodeURIComponent(`${start[1]}${low}`)}-L${high}`;
});
window.addEventListener("hashchange", markRange);

// ---- Live updates

// Browsers open six connections to a host over HTTP/1.1. All tabs share these slots for streams,
// so that loads of pages always have connections. A tab without a slot requests updates instead.
const SLOTS = 3;
const POLL_MS = 3000;

function withSlot(work, slot = 0) {
  if (!navigator.locks) return work().then(() => true);
  return navigator.locks
    .request(`acrtask-stream-${slot}`, { ifAvailable: true }, async (lock) => {
      if (!lock) return false;
      await work();
      return true;
    })
    .then((done) => done || (slot + 1 < SLOTS ? withSlot(work, slot + 1) : false));
}

function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((done) => {
    document.addEventListener("visibilitychange", function check() {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", check);
      done();
    });
  });
}

function liveUrl(path, isStream) {
  const url = new URL(path, location.origin);
  if (isFollowing) url.searchParams.set("after", String(last));
  if (isStream) url.searchParams.set("stream", "1");
  return url;
}

// Streams updates until the tab is hidden, the stream fails or the run ends. Returns `true` at the
// end of the run.
function stream(path) {
  return new Promise((done) => {
    const source = new EventSource(liveUrl(path, true));
    const close = (isDone) => {
      source.close();
      document.removeEventListener("visibilitychange", hide);
      window.removeEventListener("pagehide", leave);
      done(isDone);
    };
    const hide = () => document.hidden && close(false);
    const leave = () => close(false);
    document.addEventListener("visibilitychange", hide);
    window.addEventListener("pagehide", leave);
    source.onopen = () => status("");
    source.onmessage = (event) => {
      const update = JSON.parse(event.data);
      apply(update);
      if (update.done) close(true);
    };
    source.onerror = () => close(false);
  });
}

// Requests one update. Returns `true` if there are no further ones.
async function poll(path) {
  const response = await fetch(liveUrl(path, false), { redirect: "manual" });
  if (response.type === "opaqueredirect" || response.status === 404) {
    status("The session has ended. Reload the page to sign in.");
    return true;
  }
  if (!response.ok) throw new Error(response.statusText);
  status("");
  const update = await response.json();
  apply(update);
  return update.done === true;
}

async function follow(path) {
  for (;;) {
    await visible();
    try {
      let isDone = false;
      const streamed = await withSlot(async () => {
        isDone = await stream(path);
      });
      // A stream that ended early says nothing about the reason. The next request does.
      if (!isDone && !document.hidden) isDone = await poll(path);
      if (isDone) return;
      await sleep(streamed ? 1000 : POLL_MS);
    } catch {
      status("The server does not respond. Updates continue when it does.");
      await sleep(POLL_MS);
    }
  }
}

// ---- Keys

const KEYS = [
  ["?", "Show or hide the keys"],
  ["o", "Overview"],
  ["r", "Runs"],
  ["t", "Tasks"],
  ["i", "Images"],
  ["c", "Cascades"],
  ["/", "Filter"],
];
const PATHS = { o: "/", r: "/runs", t: "/tasks", i: "/images", c: "/cascades" };

function toggleKeys() {
  const open = byId("keys");
  if (open) {
    open.close();
    open.remove();
    return;
  }
  const dialog = document.createElement("dialog");
  dialog.id = "keys";
  dialog.setAttribute("aria-label", "Keys");
  const list = document.createElement("dl");
  for (const [key, text] of KEYS) {
    const term = document.createElement("dt");
    const code = document.createElement("kbd");
    code.textContent = key;
    term.append(code);
    const description = document.createElement("dd");
    description.textContent = text;
    list.append(term, description);
  }
  dialog.append(list);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.closest("input, select, textarea")) return;
  if (event.key === "?") toggleKeys();
  else if (event.key === "/") {
    const field = document.querySelector(".filter input, .filter select");
    if (!field) return;
    event.preventDefault();
    field.focus();
  } else if (PATHS[event.key] && document.querySelector("nav[aria-label=Sections]")) {
    location.href = PATHS[event.key];
  }
});

showTimes();
showButtons();
markRange();
setInterval(showTimes, 1000);
const live = document.querySelector("main[data-live]")?.dataset.live;
if (live) follow(live);
