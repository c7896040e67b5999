
"use strict";
(() => {
  const menu = document.querySelector(".menu");
  const narrow = matchMedia("(max-width: 50rem)");
  const fit = () => { menu.open = !narrow.matches; };
  narrow.addEventListener("change", fit);
  fit();
  menu.addEventListener("click", (e) => {
    if (narrow.matches && e.target.closest("a")) menu.open = false;
  });

  const search = document.getElementById("search");
  const none = document.getElementById("none");
  search.parentElement.hidden = false;
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const section of menu.querySelectorAll("section")) {
      let here = 0;
      for (const li of section.querySelectorAll("li")) {
        const text = li.dataset.words || li.textContent.toLowerCase();
        li.hidden = !words.every((w) => text.includes(w));
        if (!li.hidden) here++;
      }
      section.hidden = here === 0;
      found += here;
    }
    none.hidden = found > 0;
  });
  search.addEventListener("keydown", (e) => {
    if (e.key === "Enter") {
      const first = menu.querySelector("section:not([hidden]) li:not([hidden]) a");
      if (first && search.value) first.click();
    } else if (e.key === "Escape") {
      search.value = "";
      search.dispatchEvent(new Event("input"));
      search.blur();
    }
  });
  document.addEventListener("keydown", (e) => {
    if (e.key === "/" && !e.ctrlKey && !e.metaKey && !e.altKey && !(e.target instanceof HTMLInputElement)) {
      e.preventDefault();
      menu.open = true;
      search.focus();
    }
  });

  if (location.protocol.startsWith("http")) {
    document.getElementById("url").textContent = new URL(".", location).href.replace(/\/$/, "");
  }

  if (navigator.clipboard) {
    for (const sample of document.querySelectorAll(".sample")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.setAttribute("aria-label", "Copy: " + sample.querySelector(".label").textContent);
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(sample.querySelector("code").textContent);
          button.textContent = "Copied";
        } catch {
          button.textContent = "Not copied";
        }
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      sample.append(button);
    }
  }

  const links = new Map();
  for (const a of menu.querySelectorAll("a[href^='#']")) links.set(a.getAttribute("href").slice(1), a);
  let current = null;
  const seen = new IntersectionObserver((entries) => {
    for (const e of entries) {
      const link = links.get(e.target.id);
      if (!e.isIntersecting || !link || link === current) continue;
      if (current) current.removeAttribute("aria-current");
      current = link;
      current.setAttribute("aria-current", "true");
      if (!narrow.matches) current.scrollIntoView({ block: "nearest" });
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const part of document.querySelectorAll("main > .intro, .op, main > .wide")) seen.observe(part);
})();
