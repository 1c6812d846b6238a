"use strict";
// Sorting, filtering, switching arms off in plots, and the absorption explorer. Text from data goes in as text only.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const say = (text) => { document.getElementById("status").textContent = text; };

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // --- tables

  function sortBy(table, column, header) {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of all("thead th", table)) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const keyed = all("tbody tr", table).map((row) => {
      const cell = row.cells[column];
      return { row, number: parseFloat(cell.dataset.v), text: cell.textContent.trim() };
    });
    const numbers = keyed.some((entry) => !Number.isNaN(entry.number));
    const way = ascending ? 1 : -1;
    keyed.sort((a, b) => {
      if (!numbers) return way * a.text.localeCompare(b.text, "en", { numeric: true });
      if (Number.isNaN(a.number) || Number.isNaN(b.number)) return Number.isNaN(a.number) - Number.isNaN(b.number);
      return way * (a.number - b.number);
    });
    table.tBodies[0].append(...keyed.map((entry) => entry.row));
    say(`Sorted by ${header.textContent.trim()}, ${ascending ? "ascending" : "descending"}.`);
  }

  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((header, column) => {
      const button = make("button", { type: "button" });
      button.append(...header.childNodes);
      header.append(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sortBy(table, column, header));
    });
  }

  for (const tools of all(".tools[data-table]")) {
    const rows = all(`#${tools.dataset.table} tbody tr`);
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const search = tools.querySelector("input");
    const selects = all("select", tools);
    const apply = () => {
      const wanted = search.value.trim().toLowerCase();
      let count = 0;
      rows.forEach((row, place) => {
        const fits = texts[place].includes(wanted)
          && selects.every((select) => select.value === "" || row.dataset[select.dataset.key] === select.value);
        row.hidden = !fits;
        count += fits;
      });
      tools.querySelector("output").textContent = `${count} of ${rows.length} rows`;
    };
    tools.hidden = false;
    tools.addEventListener("input", apply);
    apply();
  }

  // --- plots

  const off = new Set();
  const drawn = all("figure svg [data-family]");
  for (const button of all(".legend button")) {
    button.disabled = false;
    button.addEventListener("click", () => {
      const key = button.dataset.family === undefined ? `k${button.dataset.k}` : `f${button.dataset.family}`;
      const on = off.delete(key) || !off.add(key);
      button.setAttribute("aria-pressed", on);
      for (const element of drawn) {
        element.classList.toggle("off", off.has(`f${element.dataset.family}`) || off.has(`k${element.dataset.k}`));
      }
    });
  }
  for (const hint of all(".script-only")) hint.hidden = false;

  // --- absorption explorer

  const form = document.getElementById("explorer-tools");
  const data = JSON.parse(document.getElementById("data").textContent || "null");
  if (!form || !data) return;
  const PAGE = 8;
  const { arms, entries } = data;
  let shown = PAGE;
  const field = (name) => form.elements.namedItem(name);
  const quoted = (text) => make("bdi", { className: "token" }, `“${text}”`);
  const percent = (share) => (share === null ? "-" : `${Math.round(100 * share)}%`);
  const figure = (value, digits = 2) => (value === null ? "-" : value.toFixed(digits));

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, label]) => make("option", { value, textContent: label })));
    if (chosen !== undefined && options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
  }

  function side(arm, latents) {
    const box = make("div", { className: "side" }, make("p", { className: "who" }, make("bdi", { textContent: arms[arm] })));
    if (!latents) {
      box.append(make("p", { className: "soft", textContent: "not measured" }));
      return box;
    }
    const [silent, main, absorber] = latents;
    const state = silent ? "○ main latents silent" : "● main latents fire";
    box.append(make("p", { className: silent ? "state bad" : "state good", textContent: state }));
    const strengths = main.map(([latent, strength]) => (strength ? `${latent} (${figure(strength)})` : latent)).join(", ");
    box.append(make("p", { className: "soft", textContent: `main latents (strength where they fire): ${strengths || "none"}` }));
    if (absorber) {
      const [latent, strength, share, probe, parent, child] = absorber;
      const bar = make("i");
      bar.style.width = `${100 * Math.min(1, share || 0)}%`;
      box.append(
        make("p", {}, "strongest on the probe: latent ", make("b", { textContent: latent }), ", which fires most on ", quoted(child)),
        make("p", {}, make("span", { className: "share", ariaHidden: "true" }, bar), `${percent(share)} of the projection`),
        make("p", { className: "soft", textContent:
          `strength ${figure(strength)}, cosine with the probe ${figure(probe)}, with the parent ${figure(parent)}` }),
      );
    } else if (silent) {
      box.append(make("p", { className: "soft", textContent: "nothing fires along the probe" }));
    }
    return box;
  }

  function event([before, token, after, byArm], left, right) {
    const context = make("p", { className: "context", dir: "auto" },
      make("bdi", { textContent: before }), make("mark", {}, make("bdi", { textContent: token || "∅" })), make("bdi", { textContent: after }));
    return make("li", {}, context, make("div", { className: "sides" }, side(left, byArm[left]), side(right, byArm[right])));
  }

  function absorbers(entry, arm) {
    const list = make("ul", { className: "findings" });
    const measured = entry[2][arm];
    for (const [latent, events, precision, probe, parent, child] of measured || []) {
      list.append(make("li", {}, "latent ", make("b", { textContent: latent }), `, ${events} events, fires most on `, quoted(child),
        ` (${percent(precision)} of its firings), cosine with the probe ${figure(probe)}, with the parent ${figure(parent)}`));
    }
    const empty = make("p", { className: "soft", textContent: measured ? "none" : "not measured" });
    return make("div", { className: "side" }, make("h4", {}, make("bdi", { textContent: arms[arm] })), list.childElementCount ? list : empty);
  }

  function fits(byArm, left, right, which) {
    const [a, b] = [byArm[left], byArm[right]].map((of) => Boolean(of && of[0]));
    return { all: true, closed: a && !b, opened: !a && b, both: a && b }[which];
  }

  function draw() {
    const seed = field("seed").value;
    const entry = entries.find((of) => of[0] === field("concept").value && String(of[1]) === seed);
    const [left, right] = [Number(field("left").value), Number(field("right").value)];
    const wanted = field("text").value.trim().toLowerCase();
    const events = entry[3].filter(([before, token, after, byArm]) =>
      fits(byArm, left, right, field("which").value) && (before + token + after).toLowerCase().includes(wanted));
    const list = make("ol", { className: "events" });
    list.append(...events.slice(0, shown).map((of) => event(of, left, right)));
    const parts = [list];
    if (events.length > shown) {
      const more = make("button", { type: "button", className: "more", textContent: `${events.length - shown} more` });
      more.addEventListener("click", () => {
        const first = shown;
        shown += 4 * PAGE;
        draw();
        const next = document.querySelectorAll(".events > li")[first];
        next.tabIndex = -1;
        next.focus();
      });
      parts.push(more);
    }
    parts.push(make("h3", { textContent: "Most often strongest where main latents are silent" }),
      make("div", { className: "sides" }, absorbers(entry, left), absorbers(entry, right)));
    document.getElementById("explorer").replaceChildren(...parts);
    const cut = data.left_out ? ` The page holds ${data.shown} of the report's ${data.shown + data.left_out} events; the rest are in report.json.` : "";
    document.getElementById("explorer-count").textContent = `${events.length} of ${entry[3].length} events of this concept and seed.${cut}`;
  }

  const seeds = () => fill(field("seed"), entries.filter((of) => of[0] === field("concept").value).map((of) => [of[1], of[1]]), field("seed").value);
  const concepts = [...new Set(entries.map((of) => of[0]))];
  fill(field("concept"), concepts.map((name) => [name, name]));
  fill(field("left"), arms.map((name, place) => [place, name]), data.left);
  fill(field("right"), arms.map((name, place) => [place, name]), data.right);
  seeds();
  form.addEventListener("submit", (submitted) => submitted.preventDefault());
  form.addEventListener("input", (changed) => {
    shown = PAGE;
    if (changed.target.name === "concept") seeds();
    draw();
  });
  form.hidden = false;
  draw();
})();
