// What the theme leaves out for people who read the site with a keyboard or a screen reader.
function complete() {
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
  document.querySelectorAll("nav.md-code__nav").forEach((nav) => nav.setAttribute("role", "presentation"));
  for (const area of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (area.scrollWidth > area.clientWidth) area.tabIndex = 0;
  }
}

// The theme adds them when the page has loaded.
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
window.addEventListener("resize", complete);  // when a page is zoomed, more tables scroll
complete();
