// What the pages do beyond HTML: the event stream's sign of life, local times, keys, copy
// buttons, the theme. No page needs it to be read.

const root = document.documentElement;
const find = (selector, within = document) => within.querySelector(selector);
const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];
root.classList.add("js");

// --- times: those of the server become those of the reader ---

const two = (n) => String(n).padStart(2, "0");
const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

function localise(el) {
  const text = el.getAttribute("datetime");
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return;
  let s = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  if (el.hasAttribute("data-ms")) s += "." + String(at.getMilliseconds()).padStart(3, "0");
  if (at.toDateString() !== new Date().toDateString()) s = `${months[at.getMonth()]} ${at.getDate()} ${s}`;
  if (el.textContent !== s) el.textContent = s;
  // The title keeps the nanoseconds that a Date does not have.
  const nanos = (/\.(\d+)/.exec(text)?.[1] ?? "").padEnd(9, "0");
  const off = -at.getTimezoneOffset();
  const zone = `${off < 0 ? "-" : "+"}${two(Math.floor(Math.abs(off) / 60))}:${two(Math.abs(off) % 60)}`;
  const title = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${nanos} ${zone}`;
  if (el.title !== title) el.title = title;
}

function refresh() {
  for (const el of findAll("time[datetime]")) localise(el);
  const hold = find("#hold");
  if (hold) {
    hold.hidden = false;
    hold.setAttribute("aria-pressed", String(held()));
    hold.textContent = held() ? "Held" : "Hold";
  }
}

// --- live ---

const stream = find("#stream");
const sign = find("#live");
const beatLimit = 15000; // three beats of the server
let beaten = 0;
let delay = 500;
let timer = 0;
let gone = false;

function say(state, words) {
  if (!sign) return;
  sign.dataset.state = state;
  const el = find(".say", sign);
  if (el.textContent !== words) el.textContent = words;
}

function connect() {
  clearTimeout(timer);
  if (gone || !stream || !globalThis.htmx) return;
  stream.setAttribute("hx-sse:connect", stream.dataset.url);
  stream.setAttribute("hx-config", "sse.reconnectMaxDelay:5s");
  stream.setAttribute("hx-trigger", "sandglass:connect");
  htmx.process(stream);
  htmx.trigger(stream, "sandglass:connect");
}

// The extension tries again when a stream breaks; when there never was one, this does.
function later() {
  if (gone) return;
  clearTimeout(timer);
  timer = setTimeout(() => { if (!stream._htmx?.sse) connect(); }, delay);
  delay = Math.min(delay * 2, 5000);
}

function lost() {
  if (!gone) say("lost", "Not live: connecting again");
}

if (stream) {
  stream.addEventListener("htmx:sse:after:connection", () => { beaten = Date.now(); delay = 500; });
  stream.addEventListener("htmx:sse:error", (e) => {
    if (e.detail?.status === 401) end("signed out");
    else if (e.detail?.status === 404) end("missing");
    else lost();
  });
  stream.addEventListener("htmx:sse:close", () => { lost(); later(); });
  stream.addEventListener("htmx:error", () => { lost(); later(); });
  stream.addEventListener("htmx:response:error", (e) => {
    if (e.detail?.ctx?.response?.status === 401) end("signed out");
    else { lost(); later(); }
  });
  stream.addEventListener("beat", (e) => {
    beaten = Date.now();
    const { live, why } = JSON.parse(e.detail.data);
    if (live) say("live", held() ? "Live, list held" : "Live");
    else say("stale", "Not up to date: " + why);
  });
  stream.addEventListener("gone", (e) => end(JSON.parse(e.detail.data).why));
  document.addEventListener("htmx:after:swap", refresh);
  setInterval(() => {
    if (gone || !beaten || Date.now() - beaten <= beatLimit) return;
    lost();
    beaten = 0;
    stream._htmx?.sse?.reader?.cancel(); // it hangs; the extension connects again
  }, 1000);
  if (globalThis.htmx) connect();
  else addEventListener("load", connect);
}

function end(why) {
  gone = true;
  stream.remove(); // ends the connection
  say("lost", why === "signed out" ? "Not live: signed out. Reload the page to sign in" : "Not live: what it showed is gone");
}

// --- hold: a list that is being read does not move ---

const held = () => find("#ops")?.hasAttribute("data-held") ?? false;

function setHeld(on) {
  const ops = find("#ops");
  if (!ops || !find("#hold") || held() === on) return;
  ops.toggleAttribute("data-held", on);
  refresh();
  if (sign?.dataset.state === "live") say("live", on ? "Live, list held" : "Live");
  if (!on && stream?.isConnected) { // what was missed comes with a new stream
    for (const d of findAll("details[open]", ops)) d.open = false;
    catchUp();
  }
}

async function catchUp() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok || held()) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = find("#ops", page);
  if (fresh && !held()) { find("#ops").replaceWith(document.adoptNode(fresh)); refresh(); }
}

document.addEventListener("toggle", (e) => {
  if (e.target.matches?.("#ops .op details") && e.target.open) setHeld(true);
}, true);

// --- keys ---

const rows = () => findAll(".row").filter((el) => el.offsetParent !== null);

function move(step) {
  const all = rows();
  if (all.length === 0) return;
  const at = all.indexOf(document.activeElement);
  const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.max(0, Math.min(all.length - 1, at + step))];
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing) return;
  const typing = e.target.closest?.("input, textarea, select, dialog");
  if (e.key === "Escape") {
    if (e.target.matches?.("input")) e.target.blur();
    else if (!typing) { findAll("details[open]").forEach((d) => { d.open = false; }); setHeld(false); }
    return;
  }
  if (typing && !e.target.matches("[type=checkbox]")) return;
  switch (e.key) {
    case "/": find("#q")?.focus(); find("#q")?.select(); break;
    case "j": move(1); break;
    case "k": move(-1); break;
    case "x": e.target.closest?.(".node")?.querySelector(".pick input")?.click(); break;
    case "p": setHeld(!held()); break;
    case "?": find("#help")?.showModal(); break;
    default: return;
  }
  e.preventDefault();
});

// --- buttons ---

let toastTimer = 0;
function toast(words) {
  const el = find("#toast");
  el.textContent = words;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { el.textContent = ""; }, 1500);
}

document.addEventListener("click", async (e) => {
  const button = e.target.closest?.("button");
  if (!button) {
    const pop = find(".syntax[open]");
    if (pop && !pop.contains(e.target)) pop.open = false;
    return;
  }
  if (button.id === "hold") setHeld(!held());
  if (button.id === "help-open") find("#help").showModal();
  if (button.matches(".copy")) {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      toast("Copied");
    } catch {
      toast("The browser does not let this page copy");
    }
  }
});

find("#help-open")?.removeAttribute("hidden");

// --- theme: at once, without leaving the page ---

find("#theme")?.addEventListener("submit", async (e) => {
  const chosen = e.submitter?.value;
  if (!chosen) return;
  e.preventDefault();
  root.dataset.theme = chosen === "auto" ? "" : chosen;
  for (const b of findAll("#theme button[name]")) b.setAttribute("aria-pressed", String(b.value === chosen));
  const body = new URLSearchParams({ theme: chosen, back: "/healthz" });
  await fetch("/theme", { method: "POST", body, redirect: "manual" }).catch(() => {});
});

refresh();
