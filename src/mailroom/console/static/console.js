"use strict";
// Updates the overview every second while the page is visible. The server renders and escapes everything.
// Without this script the page is the same, and reloads itself.

(() => {
  const PAUSE_MS = 1000;
  const PATIENCE_MS = 6000;
  const live = document.getElementById("live");
  const main = document.getElementById("main");
  const announcement = document.getElementById("announcement");
  const seen = new Map();
  let said = document.getElementById("state")?.dataset.state;
  let pressed = false;
  let timer = 0;

  function say(state, text) {
    live.hidden = false;
    live.dataset.state = state;
    document.getElementById("live-text").textContent = text;
  }

  function take(page) {
    for (const fresh of page.querySelectorAll("[data-part]")) {
      const old = document.getElementById(fresh.id);
      if (!old || seen.get(fresh.id) === fresh.outerHTML || held(old)) continue;
      seen.set(fresh.id, fresh.outerHTML);
      Object.assign(old.dataset, fresh.dataset);
      const mine = old.querySelector(".ledger tbody");
      const theirs = fresh.querySelector(".ledger tbody");
      if (mine && theirs) {
        merge(mine, theirs);
        old.querySelector(".pages")?.remove();
        old.append(...fresh.querySelectorAll(".pages"));
      } else if (old.innerHTML !== fresh.innerHTML) old.replaceChildren(...fresh.childNodes);
    }
    const state = document.getElementById("state").dataset;
    main.classList.toggle("stale", state.away !== "");
    say(state.away ? "lost" : "live", state.away ? "No database" : "Live");
    if (state.state !== said) announcement.textContent = said = state.state;
  }

  // A part that is being pressed, focused or typed into is not replaced.
  function held(part) {
    if (pressed && part.matches("#deliveries, #brake, #nav")) return true;
    if (part.querySelector("details[open]")) return true;
    return part.contains(document.activeElement) && document.activeElement.matches(":focus-visible");
  }

  // Keeps rows that are in both lists.
  function merge(mine, theirs) {
    const known = new Map([...mine.children].map((row) => [row.dataset.id, row]));
    const rows = [...theirs.children].map((row) => {
      const own = known.get(row.dataset.id);
      if (own) return own;
      row.classList.add("new");
      return row;
    });
    for (const row of known.values()) if (!rows.includes(row)) row.remove();
    let at = mine.firstElementChild;
    for (const row of rows) {
      if (row === at) at = at.nextElementSibling;
      else mine.insertBefore(row, at);
    }
  }

  async function look() {
    clearTimeout(timer);
    timer = 0;
    const asked = performance.now();
    try {
      const answer = await fetch(live.dataset.fragment, { signal: AbortSignal.timeout(PATIENCE_MS) });
      if (!answer.ok) throw new Error(answer.statusText);
      take(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      main.classList.add("stale");
      say("lost", "Not connected");
    }
    if (!document.hidden && !timer) timer = setTimeout(look, Math.max(PAUSE_MS - (performance.now() - asked), 200));
  }

  if (live.dataset.fragment) {
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) {
        clearTimeout(timer);
        timer = 0;
      } else if (!timer) look();
    });
    addEventListener("pointerdown", () => { pressed = true; });
    for (const end of ["pointerup", "pointercancel", "blur"]) addEventListener(end, () => { pressed = false; });
    look();
  }

  for (const name of ["keydown", "click"]) {
    document.addEventListener(name, (event) => {
      for (const menu of document.querySelectorAll(".menu[open]")) {
        if (name === "keydown" ? event.key !== "Escape" : menu.contains(event.target)) continue;
        menu.open = false;
        if (name === "keydown") menu.querySelector("summary").focus();
      }
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, textarea, select")) return;
    event.preventDefault();
    document.getElementById("who").focus();
  });
})();
