"use strict";
// Updates the list as mails arrive, turns switches in place, and moves through the list by keys. The server
// makes and escapes all that is shown. Without this script a click does the same.

(() => {
  const live = document.getElementById("live");
  const announcement = document.getElementById("announcement");
  const search = document.getElementById("q");
  let kept = Number(document.getElementById("list").dataset.kept);
  let looking = false;
  let again = false;

  // Replaces an element by the server's current fragment of the same id.
  async function renew(id) {
    const old = document.getElementById(id);
    const answer = await fetch(old.dataset.fragment, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById(id);
    if (!fresh || !old.isConnected || fresh.innerHTML === old.innerHTML) return;
    const focused = old.contains(document.activeElement) ? document.activeElement.dataset.id : undefined;
    const held = anchor(old);
    update(old, fresh);
    old.dataset.kept = fresh.dataset.kept || "";
    const by = (name) => old.querySelector(`[data-id="${CSS.escape(name)}"]`);
    if (focused && by(focused)) by(focused).focus({ preventScroll: true });
    if (held && by(held.id)) held.scroller.scrollTop += by(held.id).getBoundingClientRect().top - held.top;
  }

  function update(old, fresh) {
    const mine = old.querySelector("ol");
    const theirs = fresh.querySelector("ol");
    if (!mine || !theirs) {
      old.replaceChildren(...fresh.childNodes);
      return;
    }
    merge(mine, theirs);
    for (const part of [".list-head", ".pages"]) {
      const was = old.querySelector(part);
      const is = fresh.querySelector(part);
      if (was?.outerHTML === is?.outerHTML) continue;
      if (was && is) was.replaceWith(is);
      else if (is) old.append(is);
      else was.remove();
    }
  }

  // A row that stays is not replaced, so a press on it that began before a mail arrived is still a click.
  function merge(mine, theirs) {
    const id = (item) => item.firstElementChild.dataset.id;
    const known = new Map([...mine.children].map((item) => [id(item), item]));
    let at = mine.firstElementChild;
    for (const item of [...theirs.children]) {
      const own = known.get(id(item));
      if (own?.innerHTML !== item.innerHTML) {
        item.classList.toggle("new", !own);
        mine.insertBefore(item, at);
        continue;
      }
      while (at !== own) at = drop(at);
      at = own.nextElementSibling;
    }
    while (at) at = drop(at);
  }

  function drop(item) {
    const next = item.nextElementSibling;
    item.remove();
    return next;
  }

  // Returns the first visible row if the list is scrolled, so that it can be kept in its place.
  function anchor(list) {
    const own = getComputedStyle(list).overflowY === "auto";
    const scroller = own ? list : document.scrollingElement;
    if (scroller.scrollTop < 8) return null;
    const start = own ? list.getBoundingClientRect().top : 0;
    const row = [...list.querySelectorAll(".row")].find((each) => each.getBoundingClientRect().top >= start);
    return row ? { id: row.dataset.id, top: row.getBoundingClientRect().top, scroller } : null;
  }

  async function look() {
    again = true;
    if (looking) return;
    looking = true;
    try {
      while (again) {
        again = false;
        await Promise.all([renew("list"), renew("switches")]);
        const now = Number(document.getElementById("list").dataset.kept);
        if (now !== kept) announcement.textContent = `${now} mail${now === 1 ? "" : "s"}`;
        kept = now;
      }
    } catch {
      say("lost", "Not connected");
    } finally {
      looking = false;
    }
  }

  function say(state, text) {
    live.hidden = false;
    live.dataset.state = state;
    document.getElementById("live-text").textContent = text;
  }

  // A browser opens at most six connections to a server, so a hidden page closes its own.
  let events = null;
  function listen() {
    if (document.hidden) {
      events?.close();
      events = null;
    } else if (!events) {
      events = new EventSource("/events");
      events.onopen = () => say("live", "Live");
      events.onmessage = look;
      events.onerror = () => say("lost", "Not connected");
    }
  }
  document.addEventListener("visibilitychange", listen);
  addEventListener("pagehide", () => { events?.close(); events = null; });
  addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
  listen();

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.matches("form[method=post]")) return;
    event.preventDefault();
    try {
      const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
      if (!answer.ok) return say("lost", `Refused: ${answer.status}`);
      if ("live" in form.dataset) await look();
      else location.assign(form.elements.back?.value || "/");
    } catch {
      say("lost", "Not connected");
    }
  });

  let typing = 0;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      const query = search.value.trim() ? new URLSearchParams({ q: search.value.trim() }) : "";
      const open = document.querySelector(".row[aria-current]")?.dataset.id;
      const fragment = new URLSearchParams(query);
      if (open) fragment.set("open", open);
      document.getElementById("list").dataset.fragment = `/list?${fragment}`;
      if (location.pathname === "/") history.replaceState(null, "", query ? `/?${query}` : "/");
      look();
    }, 120);
  });

  for (const menu of document.querySelectorAll(".menu")) {
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      menu.open = false;
      menu.querySelector("summary").focus();
    });
  }
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll(".menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
    if (event.key === "/") {
      event.preventDefault();
      search.focus();
      return;
    }
    const inList = event.target.matches(".row");
    const step = { j: 1, k: -1, ...(inList && { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
    if (!step) return;
    const rows = [...document.querySelectorAll(".row")];
    const from = inList ? event.target : document.querySelector(".row[aria-current]");
    const at = from ? rows.indexOf(from) + step : 0;
    if (!rows[at]) return;
    event.preventDefault();
    rows[at].focus();
  });
})();
