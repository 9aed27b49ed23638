"use strict";
(() => {
  const root = document.documentElement, all = (s, at = document) => [...at.querySelectorAll(s)];
  root.classList.add("js");

  // -- figures: saved as they are on paper, in light colours
  const save = (blob, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const alone = (figure) => {
    const svg = figure.querySelector("svg.fig").cloneNode(true), style = document.createElementNS(svg.namespaceURI, "style");
    svg.removeAttribute("style");
    style.textContent = document.getElementById("figure-style").textContent;
    svg.prepend(style);
    const ground = document.createElementNS(svg.namespaceURI, "rect");
    for (const [k, v] of Object.entries({ width: "100%", height: "100%", fill: "#fff" })) ground.setAttribute(k, v);
    style.after(ground);
    return svg;
  };
  const text = (figure) => new XMLSerializer().serializeToString(alone(figure));
  const plain = (v) => (v === null ? "" : typeof v === "string" && /^[=+\-@]/.test(v) ? "'" + v : String(v)); // no formula of a spreadsheet
  const quoted = (v) => (/[",\n]/.test(plain(v)) ? '"' + plain(v).replaceAll('"', '""') + '"' : plain(v));
  const savers = {
    svg: (figure, name) => save(new Blob([text(figure)], { type: "image/svg+xml" }), name),
    csv: (figure, name) => {
      const { head, rows } = JSON.parse(figure.querySelector("script").textContent);
      save(new Blob([[head, ...rows].map((r) => r.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" }), name);
    },
    png: (figure, name) => {
      const image = new Image(), box = alone(figure).viewBox.baseVal, scale = 3;
      image.onload = () => {
        const canvas = Object.assign(document.createElement("canvas"), { width: box.width * scale, height: box.height * scale });
        canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
        canvas.toBlob((blob) => save(blob, name));
      };
      image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text(figure));
    },
  };
  for (const button of all("[data-save]"))
    button.onclick = () => savers[button.dataset.save](button.closest("figure"), `${button.closest("figure").id}.${button.dataset.save}`);

  // -- answers: filtered
  const filters = all("[data-filter]"), shown = document.querySelector(".filters output");
  const filter = () => {
    const want = Object.fromEntries(filters.map((f) => [f.dataset.filter, f.value])), fits = (el, name) => !want[name] || el.dataset[name] === want[name];
    let n = 0;
    for (const prompt of all(".prompt")) {
      const here = fits(prompt, "cell") && fits(prompt, "label");
      let any = false;
      for (const answer of all(".said li", prompt)) {
        answer.hidden = !(here && fits(answer, "condition") && fits(answer, "outcome"));
        if (!answer.hidden) (any = true), n++;
      }
      prompt.hidden = !any;
    }
    shown.textContent = `${n} answer${n === 1 ? "" : "s"} shown`;
  };
  for (const f of filters) f.onchange = filter;

  // -- terms: their definition on hover and focus
  const tip = document.getElementById("tip");
  const tell = (event) => {
    const term = event.target.closest?.(".term");
    tip.hidden = !term || event.type === "focusout" || event.type === "mouseout";
    if (tip.hidden) return;
    tip.textContent = document.getElementById(term.getAttribute("aria-describedby")).textContent;
    const at = term.getBoundingClientRect(), left = Math.min(at.left, root.clientWidth - tip.offsetWidth - 12);
    const above = at.bottom + tip.offsetHeight + 12 > root.clientHeight;
    tip.style.left = `${Math.max(12, left) + scrollX}px`;
    tip.style.top = `${(above ? at.top - tip.offsetHeight - 6 : at.bottom + 6) + scrollY}px`;
  };
  for (const kind of ["mouseover", "mouseout", "focusin", "focusout"]) document.addEventListener(kind, tell);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  // -- where the reader is
  const links = new Map(all("nav a").map((a) => [a.hash.slice(1), a]));
  const watch = new IntersectionObserver((entries) => {
    const entry = entries.find((e) => e.isIntersecting);
    if (!entry) return;
    for (const [key, link] of links) key === entry.target.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const part of all("section[id], .cards")) { if (!part.id) part.id = "top-cards", links.set("top-cards", links.get("top")); watch.observe(part); }

  // -- print: nothing is folded away
  addEventListener("beforeprint", () => all("details").forEach((d) => { d.dataset.was = d.open; d.open = true; }));
  addEventListener("afterprint", () => all("details").forEach((d) => { d.open = d.dataset.was === "true"; }));
})();
