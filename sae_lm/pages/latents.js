"use strict";
// The page of latents: an index, a card for one latent at a time, bars of concepts. Text from data goes in as text only.
(() => {
  const byId = (id) => document.getElementById(id);
  const head = JSON.parse(byId("head").textContent);
  const two = head.saes.length === 2;
  const ROW = 30;
  const GROUPS = ["Random", "Lowest fifth", "Second fifth", "Middle fifth", "Fourth fifth", "Highest fifth", "Top", "Near misses"];
  const NEAR = 7;
  const SHOWN = 5;
  document.body.classList.toggle("two", two);

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }
  const say = (text) => { byId("status").textContent = text; };
  const number = (value, digits = 2) => (value === null || value === undefined ? "-" : value.toFixed(digits));
  const percent = (share) => {
    if (share === null || share === undefined) return "-";
    const hundred = 100 * share;
    return `${hundred >= 10 || hundred === 0 ? Math.round(hundred) : Number(hundred.toPrecision(2))}%`;
  };
  const figure = (value) => (Math.abs(value) >= 100 ? value.toFixed(1) : Math.abs(value) >= 10 ? value.toFixed(2) : value.toFixed(3));
  const count = (value) => value.toLocaleString("en");
  const token = (id) => make("bdi", { className: "token", textContent: `“${head.tokens[id]}”` });
  const letter = (side) => (two ? "AB"[side] : "");
  const address = (side, latent) => `#${side ? "B" : "L"}${latent}`;
  const link = (side, latent, text) => make("a", { href: address(side, latent), className: two ? `side-${"ab"[side]}` : "", textContent: text || letter(side) + latent });

  // --- data, where it is in the page or in scripts beside it

  const waiting = new Map();
  const known = new Map();
  window.saeLatents = (name, data) => {
    known.set(name, Promise.resolve(data));
    if (waiting.has(name)) waiting.get(name)(data);
  };
  function chunk(name) {
    if (known.has(name)) return known.get(name);
    const inline = byId(`chunk-${name}`);
    const promise = inline
      ? Promise.resolve(JSON.parse(inline.textContent))
      : new Promise((resolve, reject) => {
        waiting.set(name, resolve);
        document.head.append(make("script", { src: `./${encodeURIComponent(head.folder)}/${name}.js`, onerror: () => {
          known.delete(name);
          reject(new Error(`${head.folder}/${name}.js could not be read; keep the folder ${head.folder} beside this page`));
        } }));
      });
    known.set(name, promise);
    return promise;
  }
  const placeOf = head.saes.map((sae) => new Map(sae.columns.latent.map((latent, place) => [latent, place])));
  async function entryOf(side, latent) {
    const place = placeOf[side].get(latent);
    if (place === undefined) return null;
    return (await chunk(`${"ab"[side]}-${Math.floor(place / head.perChunk[0])}`))[latent];
  }
  function bytes(text) {
    const raw = atob(text);
    return Uint8Array.from(raw, (c) => c.charCodeAt(0));
  }
  const contexts = new Map();
  async function contextOf(place) {
    if (contexts.has(place)) return contexts.get(place);
    const [context, row, documents, rowless, spread, packed] = (await chunk(`c-${Math.floor(place / head.perChunk[1])}`))[place % head.perChunk[1]];
    const raw = bytes(packed);
    const ids = raw.length === 2 * head.size ? new Uint16Array(raw.buffer) : new Uint32Array(raw.buffer);
    const made = { context, row, documents, rowless: new Set(rowless), spread, ids };
    contexts.set(place, made);
    return made;
  }
  function linesOf(packed) {
    const raw = bytes(packed);
    const view = new DataView(raw.buffer);
    const out = [];
    for (let at = 0; at < raw.length;) {
      const line = { place: view.getUint32(at, true), value: view.getFloat32(at + 4, true), stripes: [] };
      at += 8;
      for (let stripe = 0; stripe < head.saes.length; stripe += 1) {
        const levels = new Map();
        const n = raw[at];
        at += 1;
        for (let i = 0; i < n; i += 1, at += 2) levels.set(view.getInt8(at), raw[at + 1]);
        line.stripes.push(levels);
      }
      out.push(line);
    }
    return out;
  }

  // --- the index

  const COLUMNS = [
    { key: "latent", name: "latent", title: "number of the latent" },
    { key: "label", name: "label", title: "token, word or concept that goes best with its firing" },
    { key: "count", name: "fires", title: "share of the tokens on which it fires" },
    { key: "precision", name: "prec.", title: "precision: share of its firings that have what the label says", wide: true },
    { key: "recall", name: "recall", title: "share of the rows that have it on which it fires", wide: true },
    ...(two ? [
      { key: "status", name: "status", title: "what it is, seen from the other SAE" },
      { key: "cos", name: "cos", title: "decoder cosine with its match in the other SAE", wide: true },
    ] : [
      { key: "max", name: "max", title: "largest activation", wide: true },
      { key: "near", name: "near", title: "highest decoder cosine with another latent", wide: true },
    ]),
  ];
  let side = 0;
  let sorting = { key: "latent", up: true };
  let order = [];
  let current = { side: 0, latent: null, row: null };
  const labelOf = (of, place) => head.saes[of].labels[head.saes[of].columns.label[place]];
  const searched = head.saes.map((sae, of) => sae.columns.latent.map((latent, place) =>
    `${latent}\u0000${labelOf(of, place)}\u0000${sae.columns.top[place].map((id) => head.tokens[id]).join("\u0000")}`.toLowerCase()));

  function valueOf(of, key, place) {
    return key === "label" ? labelOf(of, place) : head.saes[of].columns[key][place];
  }
  function arrange() {
    const wanted = byId("search").value.toLowerCase();
    const exact = wanted.trim();
    const filter = byId("filter").value;
    const columns = head.saes[side].columns;
    const fits = (place) => {
      if (filter === "labelled" && !(columns.phi[place] >= 0.5)) return false;
      if (filter === "unlabelled" && columns.phi[place] >= 0.5) return false;
      if (filter.startsWith("status:") && columns.status[place] !== filter.slice(7)) return false;
      return wanted === "" || (/^\d+$/.test(exact) ? String(columns.latent[place]).startsWith(exact) || labelOf(side, place).includes(exact) : searched[side][place].includes(wanted));
    };
    order = columns.latent.map((_, place) => place).filter(fits);
    const way = sorting.up ? 1 : -1;
    const values = columns.latent.map((_, place) => valueOf(side, sorting.key, place));
    order.sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return way * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y) || a - b;
    });
    if (/^\d+$/.test(exact)) order.sort((a, b) => (String(columns.latent[b]) === exact) - (String(columns.latent[a]) === exact));
    byId("count").textContent = `${count(order.length)} of ${count(columns.latent.length)} latents`;
    drawIndex();
  }
  const table = make("table");
  const body = make("tbody");
  const top = make("tr", { className: "space" }, make("td"));
  const bottom = make("tr", { className: "space" }, make("td"));
  top.ariaHidden = bottom.ariaHidden = "true";

  function startIndex() {
    const heads = make("tr");
    for (const column of COLUMNS) {
      const button = make("button", { type: "button", textContent: column.name, title: `${column.title}; click to sort` });
      const cell = make("th", { scope: "col", className: classOf(column) }, button);
      cell.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const numbers = !["label", "status", "latent"].includes(column.key);
        sorting = { key: column.key, up: sorting.key === column.key ? !sorting.up : !numbers };
        [...heads.cells].forEach((other, at) => other.setAttribute("aria-sort",
          COLUMNS[at].key === sorting.key ? (sorting.up ? "ascending" : "descending") : "none"));
        byId("index").scrollTop = 0;
        arrange();
        say(`Sorted by ${column.name}, ${sorting.up ? "ascending" : "descending"}.`);
      });
      heads.append(cell);
    }
    table.ariaLabel = "Index of latents";
    table.append(make("thead", {}, heads), body);
    byId("index").append(table);
    byId("index").addEventListener("scroll", () => requestAnimationFrame(drawIndex), { passive: true });
    window.addEventListener("resize", drawIndex);
  }
  function classOf(column) {
    const kind = column.key === "label" ? "label" : column.key === "status" ? "fig-status" : column.key === "latent" ? "" : "fig";
    return `${kind}${column.wide ? " wide" : ""}`;
  }
  function drawIndex() {
    const box = byId("index");
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 10);
    const last = Math.min(order.length, first + Math.ceil((box.clientHeight || 600) / ROW) + 20);
    top.firstChild.style.height = `${first * ROW}px`;
    bottom.firstChild.style.height = `${(order.length - last) * ROW}px`;
    table.setAttribute("aria-rowcount", order.length + 1);
    body.replaceChildren(top, ...order.slice(first, last).map((place, at) => indexRow(place, first + at)), bottom);
    top.hidden = first === 0;
  }
  function indexRow(place, at) {
    const columns = head.saes[side].columns;
    const row = make("tr");
    row.setAttribute("aria-rowindex", at + 2);
    if (current.side === side && columns.latent[place] === current.latent) row.setAttribute("aria-current", "true");
    for (const column of COLUMNS) {
      const value = valueOf(side, column.key, place);
      if (column.key === "latent") {
        row.append(make("th", { scope: "row" }, link(side, value)));
        continue;
      }
      const cell = make("td", { className: classOf(column) });
      if (column.key === "label") {
        cell.append(make("bdi", { textContent: value || "-" }));
        cell.title = value;
        if (columns.phi[place] < 0.5) cell.classList.add("partly");
      } else if (column.key === "count") cell.textContent = percent(value / head.rows);
      else if (column.key === "max") cell.textContent = figure(value);
      else cell.textContent = column.key === "status" ? value : number(value);
      row.append(cell);
    }
    return row;
  }
  function showInIndex() {
    const at = order.findIndex((place) => head.saes[side].columns.latent[place] === current.latent);
    const box = byId("index");
    if (at >= 0 && (at * ROW < box.scrollTop || (at + 3) * ROW > box.scrollTop + box.clientHeight)) {
      box.scrollTop = Math.max(0, at * ROW - box.clientHeight / 3);
    }
    drawIndex();
  }

  // --- a latent's card

  function histogram(entry, other) {
    const [bins, perOctave] = head.bins;
    const all = [entry, other].filter((of) => of && of.h.length > 1);
    if (!all.length) return "";
    const low = Math.min(...all.map((of) => of.h[0]));
    const high = Math.max(...all.map((of) => of.h[0] + of.h.length - 1));
    const name = (bin) => figure(2 ** ((bin - bins / 2) / perOctave));
    const width = high - low;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "histogram");
    svg.setAttribute("viewBox", `0 0 ${width * 10} 60`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Histogram of activations above 0, from ${name(low)} to ${name(high)}, log scale${other ? "; the outline is the match's" : ""}`);
    for (const [at, of] of all.entries()) {
      const most = Math.max(...of.h.slice(1));
      const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
      let way = "";
      of.h.slice(1).forEach((value, bin) => {
        const [x, y] = [(of.h[0] - low + bin) * 10, 60 - 58 * value / most];
        way += of === entry ? `M${x} 60V${y}H${x + 9}V60Z` : `${bin ? "L" : "M"}${x} ${y}H${x + 10}`;
      });
      shape.setAttribute("d", way);
      shape.setAttribute("class", of === entry ? "a" : "b");
      if (of !== entry) shape.setAttribute("vector-effect", "non-scaling-stroke");
      svg.append(shape);
    }
    const says = `activations above 0: ${name(low)} to ${name(high)}, log scale${all.length > 1 ? "; outline: its match" : ""}`;
    return make("figure", {}, svg, make("figcaption", { textContent: says }));
  }
  function list(title, items, note) {
    const box = make("div", {}, make("h4", { textContent: title }));
    if (note) box.append(make("p", { className: "soft", textContent: note }));
    if (items.length) box.append(make("ul", {}, ...items.map(([what, value]) => make("li", {}, make("span", {}, what), make("span", { textContent: value })))));
    else if (!note) box.append(make("p", { className: "soft", textContent: "none" }));
    return box;
  }
  function named(of, latent) {
    const place = placeOf[of].get(latent);
    const label = place === undefined ? "" : labelOf(of, place);
    const span = make("span", {}, place === undefined ? letter(of) + latent : link(of, latent));
    if (label) span.append(" ", make("bdi", { className: "soft", textContent: label }));
    return span;
  }
  function fact(name, value, note) {
    const shown = make("dd", {}, value);
    if (note) shown.append(" ", make("small", { textContent: note }));
    return make("div", {}, make("dt", { textContent: name }), shown);
  }
  function facts(of, latent, place) {
    const columns = head.saes[of].columns;
    const box = make("dl", { className: "facts" });
    box.append(fact("fires on", `${percent(columns.count[place] / head.rows)} of tokens`, `${count(columns.count[place])} of ${count(head.rows)}`));
    box.append(fact("largest activation", figure(columns.max[place])));
    if (labelOf(of, place)) {
      box.append(fact("label", `precision ${number(columns.precision[place])}, recall ${number(columns.recall[place])}`, `phi ${number(columns.phi[place])}`));
    }
    if (two) {
      const match = columns.match[place];
      box.append(fact(`match in ${letter(1 - of)}`, named(1 - of, match), `cosine ${number(columns.cos[place])}, correlation ${number(columns.corr[place])}`));
      box.append(fact("status", columns.status[place]));
    }
    return box;
  }
  function carries(of, latent) {
    const found = [];
    for (const concept of head.concepts) {
      const bar = concept.bars[of];
      for (const segment of bar.segments) {
        if (segment[0] === latent && segment[1] >= 0.02 * bar.rows) found.push([segment[1] / bar.rows, concept, segment]);
      }
    }
    found.sort((a, b) => b[0] - a[0]);
    if (!found.length) return "";
    const says = { main: "main latent", broad: "one of its latents", instead: "instead of its main latent", beside: "beside its main latent" };
    return list("Concepts it carries", found.slice(0, 8).map(([share, concept, segment]) =>
      [`${concept.name} (${says[segment[5]]})`, `${percent(share)} of its rows`]));
  }

  async function lineOf(of, latent, entry, line, missed) {
    const at = line.place % head.size;
    const from = await contextOf(Math.floor(line.place / head.size));
    const spread = new Map(from.spread.map((piece) => [piece[0], piece]));
    const inside = from.spread.find((piece) => piece[0] <= at && at < piece[1]);
    let first = Math.max(0, at - head.before);
    const last = Math.min(head.size, at + head.after + 1);
    const cut = from.spread.find((piece) => piece[0] < first && first < piece[1]);
    if (cut) first = cut[0];
    const text = make("div", { className: "text", dir: "auto" });
    if (first > 0) text.append("…");
    for (let p = first; p < last;) {
      const [begin, end, words] = spread.get(p) || [p, p + 1, head.tokens[from.ids[p]]];
      text.append(piece(begin, end, words || "∅", at, line, from, of));
      p = end;
    }
    if (last < head.size) text.append("…");
    const place = placeInRows(from, at);
    const where = make("span", { className: "where" });
    const document_ = from.documents.filter((begin) => begin[0] <= at).pop();
    if (inside) where.append(`part ${at - inside[0] + 1} of ${inside[1] - inside[0]} of the character “${inside[2]}” · `);
    if (missed) {
      if (missed[0] >= 0) where.append("instead: ", named(of, missed[0]), ` (${percent(missed[1])} of what this one writes) · `);
      else where.append("no latent writes along this one · ");
      if (two) where.append("its match ", link(1 - of, head.saes[of].columns.match[placeOf[of].get(latent)]), line.stripes[1].has(0) ? " fires here · " : " is silent too · ");
    }
    where.append(make("a", { href: `${address(of, latent)}/R${place}`, textContent: `row ${place}` }),
      ` · document ${document_ ? document_[1] : "?"}, context ${from.context}, position ${at}`);
    const value = make("span", { className: "value", textContent: missed ? "silent" : figure(line.value) });
    const item = make("li", {}, value, text, where);
    item.dataset.row = place;
    item.dataset.same = Array.from(from.ids.slice(Math.max(0, at - 5), at + 6)).join();
    return item;
  }
  function placeInRows(from, at) {
    let place = from.row;
    for (let p = 0; p < at; p += 1) if (!from.rowless.has(p)) place += 1;
    return place;
  }
  function piece(begin, end, words, at, line, from, of) {
    const centre = begin <= at && at < end;
    const level = (stripe) => Math.max(0, ...Array.from({ length: end - begin }, (_, i) => (stripe.get(begin + i - at) || 0)));
    const levels = line.stripes.map((stripe) => level(stripe) / 255);
    const sides = two ? [of, 1 - of] : [0];
    const element = make(centre ? "mark" : from.rowless.has(begin) ? "i" : "span", { textContent: words });
    if (levels.some((share) => share > 0)) {
      element.classList.add("on");
      const says = levels.map((share, i) => `${two ? `${letter(sides[i])} ` : ""}${Math.round(100 * share)}%`).join(", ");
      sides.forEach((which, i) => element.style.setProperty(which ? "--b" : "--a", levels[i].toFixed(2)));
      element.title = centre && !two && line.value ? `${figure(line.value)}, ${says} of its largest` : `${says} of its largest`;
      element.setAttribute("role", "img");
      element.setAttribute("aria-label", `${words.trim() || words}, fires at ${says} of its largest`);
    } else if (from.rowless.has(begin)) element.title = "no row: a special token, an attention sink that was left out, or a token before the rows searched";
    else if (!centre) return document.createTextNode(words);
    return element;
  }
  async function group(title, of, latent, entry, lines, numbers, at) {
    const box = make("section", {}, make("h4", { textContent: title }));
    if (!numbers.length) {
      const none = at === NEAR ? "None found among the rows looked at, or it has no label." : "none";
      box.append(make("p", { className: "soft", textContent: none }));
      return box;
    }
    const items = await Promise.all(numbers.map((n, i) => lineOf(of, latent, entry, lines[n], at === NEAR ? entry.m[i] : null)));
    const seen = new Set();
    const hidden = [];
    for (const item of items) {
      if (seen.has(item.dataset.same)) hidden.push(item);
      else if (seen.size >= SHOWN) hidden.push(item);
      item.dataset.again = seen.has(item.dataset.same);
      seen.add(item.dataset.same);
    }
    for (const item of hidden) item.hidden = true;
    box.append(make("ol", { className: "lines" }, ...items));
    if (hidden.length) {
      const same = hidden.filter((item) => item.dataset.again === "true").length;
      const says = [hidden.length - same ? `${hidden.length - same} more` : "", same ? `${same} with the same text` : ""].filter(Boolean).join(", ");
      const more = make("button", { type: "button", className: "more", textContent: says });
      more.addEventListener("click", () => {
        for (const item of hidden) item.hidden = false;
        more.remove();
        hidden[0].tabIndex = -1;
        hidden[0].focus();
      });
      box.append(more);
    }
    return box;
  }

  let drawing = 0;
  async function drawCard() {
    drawing += 1;
    const mine = drawing;
    const { side: of, latent, row } = current;
    const place = placeOf[of].get(latent);
    const card = byId("card");
    const head3 = make("h3", {}, `Latent ${letter(of)}${latent}`);
    if (two) head3.className = `side-${"ab"[of]}`;
    if (place === undefined) {
      const d = head.saes[of].d_sae;
      const says = latent < d ? "It fires on none of these rows, or was left out of this page." : `There are latents 0 to ${d - 1}.`;
      card.replaceChildren(make("header", {}, head3), make("p", { textContent: says }));
      return;
    }
    try {
      const entry = await entryOf(of, latent);
      const other = two ? await entryOf(1 - of, head.saes[of].columns.match[place]) : null;
      const lines = linesOf(entry.x);
      const groups = await Promise.all(GROUPS.map((title, at) => group(title, of, latent, entry, lines, entry.g[at], at)));
      if (mine !== drawing) return; // another latent was chosen meanwhile
      const steps = make("span", { className: "step" },
        stepButton("previous", -1), stepButton("next", 1));
      const never = head.saes[of].columns.count[place] === 0;
      const what = make("p", { className: "what" });
      if (labelOf(of, place)) what.append(make("bdi", { textContent: labelOf(of, place) }));
      else what.append(never ? `Never fired on the ${count(head.rows)} rows searched.` : "no label: it fires on too few rows, or nothing goes with it");
      const parts = [make("header", {}, head3, steps), what, facts(of, latent, place)];
      if (!never) parts.push(histogram(entry, other));
      const near = make("div", { className: "columns" },
        list("Tokens it fires on", entry.t.map(([id, hits, rows]) => [token(id), `${percent(hits / head.saes[of].columns.count[place])} · on ${percent(hits / rows)} of them`])),
        carries(of, latent));
      const readout = make("div", { className: "columns" });
      if (entry.p) {
        readout.append(list("Promoted next", entry.p.map(([id, value]) => [token(id), `+${value.toFixed(2)}`])),
          list("Suppressed next", entry.s.map(([id, value]) => [token(id), value.toFixed(2)])));
      } else readout.append(list("Promoted and suppressed tokens", [], "not shown, see “How this was made”"));
      const neighbours = make("div", { className: "columns" },
        list("Near by decoder", entry.d.map(([id, cos]) => [named(of, id), number(cos)])),
        list("Near by encoder", entry.e.map(([id, cos]) => [named(of, id), number(cos)])),
        list("Fire together", entry.f.map(([id, , given, back]) => [named(of, id), `${percent(given)}, ${percent(back)}`])));
      neighbours.lastChild.append(make("p", { className: "soft", textContent: "P(it | this), P(this | it)" }));
      const missing = groups.pop();
      const topGroup = groups.pop();
      const fifths = make("details", {}, make("summary", { textContent: "By fifths of its activations" }), ...groups.slice(1).reverse());
      parts.push(near, groups[0], missing, topGroup, fifths, readout, neighbours);
      card.replaceChildren(...parts);
      if (row !== null) showRow(row);
    } catch (problem) {
      if (mine !== drawing) return;
      card.replaceChildren(make("header", {}, head3), make("p", { className: "warning", textContent: problem.message }));
    }
  }
  function stepButton(name, way) {
    const button = make("button", { type: "button", textContent: name });
    button.addEventListener("click", () => step(way));
    return button;
  }
  function showRow(row) {
    const item = byId("card").querySelector(`.lines > li[data-row="${row}"]`);
    if (!item) {
      say(`Row ${row} is not among the lines of this latent.`);
      return;
    }
    item.hidden = false;
    const around = item.closest("details");
    if (around) around.open = true;
    item.classList.add("here");
    item.scrollIntoView({ block: "center" });
  }
  function step(way) {
    const at = order.findIndex((place) => head.saes[side].columns.latent[place] === current.latent);
    const next = at < 0 ? 0 : Math.min(order.length - 1, Math.max(0, at + way));
    if (order.length) go(side, head.saes[side].columns.latent[order[next]]);
  }
  const go = (of, latent) => { location.hash = address(of, latent); };

  function follow() {
    const found = location.hash.match(/^#([LAB])(\d+)(?:\/R(\d+))?$/);
    if (!found) return false;
    const of = found[1] === "B" && two ? 1 : 0;
    const same = current.side === of && current.latent === Number(found[2]);
    current = { side: of, latent: Number(found[2]), row: found[3] === undefined ? null : Number(found[3]) };
    if (side !== of) {
      side = of;
      byId("side").value = String(of);
      arrange();
    }
    showInIndex();
    drawCard();
    if (!same) say(`Latent ${letter(of)}${current.latent}`);
    return true;
  }

  // --- bars of concepts

  const KINDS = [["main", "main latent"], ["broad", "another broad latent"], ["instead", "narrow, instead of the main one"], ["beside", "narrow, beside the main one"], ["rest", "all others"], ["none", "none"]];
  function bar(of, concept) {
    const { rows, none, segments, rest, others, verdict } = concept.bars[of];
    const cut = make("span", { className: "cut" });
    const part = (share) => `${(100 * share).toFixed(2)}%`;
    for (const [latent, owned, id, share, silent, kind] of segments) {
      const says = `${letter(of)}${latent}: ${percent(owned / rows)} of the rows, most on “${head.tokens[id]}” (${percent(share)} of these)${kind === "main" ? ", main latent" : `, main latent silent on ${percent(silent)}`}`;
      const piece_ = make("a", { href: address(of, latent), className: kind, title: says, ariaLabel: says });
      piece_.style.width = part(owned / rows);
      if (owned / rows > 0.07) piece_.textContent = latent;
      cut.append(piece_);
    }
    if (rest) {
      const piece_ = make("span", { className: "rest", title: `${count(others)} others: ${percent(rest / rows)}` });
      piece_.style.width = part(rest / rows);
      cut.append(piece_);
    }
    cut.setAttribute("role", "group");
    cut.setAttribute("aria-label", `${concept.name}${two ? `, ${letter(of)}` : ""}: ${verdict}, no latent on ${percent(none / rows)}`);
    cut.title = `no latent on ${percent(none / rows)} of the rows`;
    return make("div", { className: "bar" }, make("b", { className: `side-${"ab"[of]}`, textContent: letter(of) }), cut, make("span", { textContent: verdict }));
  }
  function drawBars() {
    const wanted = byId("concept-search").value.trim().toLowerCase();
    const verdict = byId("verdict").value;
    const verdicts = (concept) => concept.bars.map((of) => of.verdict);
    const fits = head.concepts.filter((concept) => concept.name.toLowerCase().includes(wanted)
      && (verdict === "" || (verdict === "differs" ? new Set(verdicts(concept)).size > 1 : verdicts(concept).includes(verdict))));
    byId("concept-count").textContent = `${fits.length} of ${head.concepts.length} concepts`;
    byId("bars").replaceChildren(make("ul", { className: "bars" }, ...fits.map((concept) => make("li", {},
      make("span", { className: "name" }, concept.name, make("small", { textContent: `${count(concept.rows)} rows, line r ${number(concept.r)}` })),
      make("div", {}, ...concept.bars.map((_, of) => bar(of, concept)))))));
  }

  // --- start

  function options(select, pairs) {
    select.replaceChildren(...pairs.map(([value, textContent]) => make("option", { value, textContent })));
  }
  const statuses = two ? [...new Set(head.saes.flatMap((sae) => sae.columns.status))].sort() : [];
  options(byId("filter"), [["", "all"], ["labelled", "labelled well (phi ≥ .5)"], ["unlabelled", "labelled badly"], ...statuses.map((status) => [`status:${status}`, status])]);
  options(byId("verdict"), [["", "all"], ...(two ? [["differs", "differ in A and B"]] : []),
    ...["clean", "split", "absorbed", "by token", "scattered", "missing"].map((name) => [name, name])]);
  byId("legend").append(...KINDS.map(([kind, says]) => make("span", {}, make("span", { className: `swatch ${kind}`, ariaHidden: "true" }), says)));
  byId("tools").hidden = byId("concept-tools").hidden = false;
  byId("search").addEventListener("input", () => { byId("index").scrollTop = 0; arrange(); });
  byId("filter").addEventListener("input", () => { byId("index").scrollTop = 0; arrange(); });
  if (two) byId("side").addEventListener("input", () => { side = Number(byId("side").value); byId("index").scrollTop = 0; arrange(); });
  byId("search").addEventListener("keydown", (pressed) => {
    if (pressed.key === "Enter" && order.length) {
      go(side, head.saes[side].columns.latent[order[0]]);
      byId("card").focus();
    } else if (pressed.key === "Escape") byId("search").blur();
  });
  for (const id of ["concept-search", "verdict"]) byId(id).addEventListener("input", drawBars);
  document.addEventListener("keydown", (pressed) => {
    if (pressed.ctrlKey || pressed.metaKey || pressed.altKey || pressed.target.closest("input, select, textarea")) return;
    if (pressed.key === "j" || pressed.key === "k") step(pressed.key === "j" ? 1 : -1);
    else if (pressed.key === "/") {
      pressed.preventDefault();
      byId("search").focus();
      byId("search").select();
    }
  });
  window.addEventListener("hashchange", follow);
  startIndex();
  arrange();
  drawBars();
  if (!follow() && order.length) {
    current = { side: 0, latent: head.saes[0].columns.latent[order[0]], row: null };
    drawIndex();
    drawCard();
  }
})();
