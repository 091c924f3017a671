// The script of the report: table, filters, charts, the views of one run and of two, and printing.
const element = id => document.getElementById(id);
const library = "data:text/javascript;base64," + element("datatables").textContent;
const { default: DataTable, set_or_remove_dark_class } = await import(library);

const stored = id => JSON.parse(element(id).textContent);
const charts = stored("charts"), points = stored("points");
const font = getComputedStyle(document.documentElement).fontFamily;
const ink = "currentColor", faint = "rgba(128, 128, 128, 0.25)";
const config = {
  font, background: null, view: { stroke: null },
  axis: { labelColor: ink, titleColor: ink, tickColor: ink, domainColor: ink, gridColor: faint, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
  legend: { labelColor: ink, titleColor: ink, labelFontSize: 12 },
};

const options = { actions: false, renderer: "svg", config };

// ── charts ──
// Vega is started when the first chart is drawn: the table is there sooner.
const startVega = () => window.vegaEmbed ?? document.head.append(
  Object.assign(document.createElement("script"), { textContent: element("vega").textContent }));

function specification(name, rows, classes, room) {
  const chart = { ...charts[name], datasets: { rows } };
  if (classes) {
    chart.width = chart.height = Math.max(6 * classes, Math.min(30 * classes, 420, room - 110)); // less the names
    if (classes > 20) chart.layer = chart.layer.slice(0, 1); // too small for counts
  }
  return chart;
}

function draw(box, rows) {
  startVega();
  const chart = specification(box.dataset.chart, rows, Number(box.dataset.size), box.parentElement.clientWidth);
  return vegaEmbed(box, chart, options);
}

// ── the tables, and their search, filters and order, which the address keeps ──
set_or_remove_dark_class();
const form = element("filters");
form.reset(); // some browsers fill in what was there before a reload
const first = Object.fromEntries(new FormData(form));
const columns = [...form.querySelectorAll("select[id]")].map(select => select.name);
const tables = [...document.querySelectorAll("table.runs")].map(table => new DataTable(table, {
  autoWidth: false,
  paging: false,
  order: [{ name: first.sort, dir: first.direction }],
  columnDefs: [{ targets: "_all", orderSequence: ["asc", "desc"] }],
  layout: { topStart: null, topEnd: null, bottomStart: "info", bottomEnd: null },
  language: { info: "_TOTAL_ runs", infoEmpty: "", infoFiltered: "of _MAX_", zeroRecords: "No run fits search and filters." },
}));

function show(values) {
  for (const table of tables) {
    table.search(values.search);
    for (const name of columns) {
      // Runs that are not measured have no data set and no split: they stay, whichever is chosen.
      const stays = ["dataset", "split"].includes(name) ? "" : null, wanted = values[name];
      table.column(`${name}:name`).search(wanted ? value => value === wanted || value === stays : "");
    }
    table.order([table.column(`${values.sort}:name`).index(), values.direction]).draw();
  }
  scale();
}

// The axis of the intervals begins below all that was trained and is shown; what lies lower is a text.
function scale() {
  const bars = tables.flatMap(table => table.rows({ search: "applied" }).nodes().toArray()).map(row => row.querySelector(".bar"));
  const values = bar => ["low", "published"].map(name => parseFloat(bar.style.getPropertyValue(`--${name}`))).filter(value => value >= 0);
  const lowest = bar => Math.min(...values(bar));
  const trained = bars.filter(bar => !bar.dataset.untrained).map(lowest);
  const from = trained.length ? Math.floor(10 * Math.min(...trained, 0.9)) / 10 : 0;
  document.documentElement.style.setProperty("--from", from);
  for (const bar of bars) {
    if (lowest(bar) < from) bar.dataset.off = `below ${from}`;
    else delete bar.dataset.off;
  }
  for (const labels of document.querySelectorAll(".scale")) {
    labels.firstChild.textContent = from;
    labels.children[1].textContent = Number(((from + 1) / 2).toFixed(2));
  }
}

function update() {
  const values = Object.fromEntries(new FormData(form));
  show(values);
  const query = new URLSearchParams(Object.entries(values).filter(([name, value]) => value !== first[name]));
  const address = location.pathname + (query.size ? `?${query}` : "") + location.hash;
  try { history.replaceState(null, "", address); } catch { /* some browsers keep the address of a file as it is */ }
  updateCosts();
}

for (const [name, value] of new URLSearchParams(location.search)) {
  const control = form.elements[name], before = control?.value;
  if (!control || !(name in first)) continue;
  control.value = value;
  if (control.value !== value) control.value = before; // a link to an option that is no more
}
// On a phone the form is folded, unless the address has something to show.
const find = element("find"), phone = matchMedia("(max-width: 700px)");
const fold = () => { find.open = !phone.matches || location.search.length > 1; };
phone.addEventListener("change", fold);
fold();
for (const event of ["input", "change"]) form.addEventListener(event, update);
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("reset", () => setTimeout(update));
for (const table of tables) {
  table.on("order", () => {
    const [column, direction] = table.order()[0] ?? [];
    const sort = table.column(column).header()?.dataset.name;
    if (!direction || (sort === form.elements.sort.value && direction === form.elements.direction.value)) return;
    form.elements.sort.value = sort;
    form.elements.direction.value = direction;
    if (!printed) update();
  });
}

// ── the charts of costs: drawn when they come into sight, then with whatever the tables show ──
const costs = element("costs"), boxes = costs.querySelectorAll(".chart");
let drawn = [], printed = false;
const shown = () => {
  const ids = new Set(tables.flatMap(table => table.rows({ search: "applied" }).ids().toArray()));
  return points.filter(point => ids.has(`row-${point.id}`));
};
function updateCosts() {
  const rows = shown();
  costs.hidden = !rows.length; // no run that the tables show is measured
  if (rows.length) drawn.forEach(({ view }) => view.data("rows", rows).runAsync());
}
new IntersectionObserver(async ([entry], observer) => {
  if (!entry.isIntersecting) return;
  observer.disconnect();
  drawn = await Promise.all([...boxes].map(box => draw(box, shown())));
  updateCosts();
}).observe(costs);
update();

// ── the map of the test images, where there is one ──
const map = element("map");
if (map) new IntersectionObserver(([entry], observer) => {
  if (!entry.isIntersecting) return;
  observer.disconnect();
  const { classes, category, predicted, relpath, x, y } = stored("map-columns");
  draw(map.querySelector(".chart"), relpath.map((name, row) => ({
    relpath: name, category: classes[category[row]], predicted: classes[predicted[row]], x: x[row], y: y[row],
  })));
}).observe(map);

// ── two runs side by side ──
const bar = element("compare"), [compare, clear] = bar.querySelectorAll("button");
const ticks = tables.flatMap(table => [...table.rows().nodes().toArray()]).flatMap(row => [...row.querySelectorAll("input")]);
let ticked = [];

function tick(ids) {
  ticked = ids.slice(-2); // a third one takes the place of the first
  for (const box of ticks) box.checked = ticked.includes(box.value);
  bar.hidden = !ticked.length;
  const names = ticked.map(id => stored_run(id).dataset.label);
  bar.firstElementChild.textContent = ticked.length > 1 ? names.join(" and ") : `${names} is ticked: tick another run.`;
  compare.disabled = ticked.length < 2;
}
for (const box of ticks) {
  box.addEventListener("change", () => tick(box.checked ? [...ticked, box.value] : ticked.filter(id => id !== box.value)));
}
compare.addEventListener("click", () => { location.hash = `compare=${ticked}`; });
clear.addEventListener("click", () => tick([]));

function stored_run(id) {
  const run = element(id);
  return run?.type === "text/html" && new DOMParser().parseFromString(run.textContent, "text/html").querySelector("article");
}

function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
const cells = (tag, values) => values.map(value => h(tag, tag === "th" ? { scope: "col" } : {}, value));
const grouped = (...numbers) => numbers.map(number => number.toLocaleString("en"));
const signed = value => (value >= 0.0005 ? "+" : value <= -0.0005 ? "−" : "±") + Math.abs(value).toFixed(3);

// McNemar's exact test: the two-sided p-value of `first` heads in tosses of a fair coin.
function exactTest(first, second) {
  const n = first + second;
  if (first === second) return 1;
  let logarithm = -n * Math.LN2, total = 0;
  for (let heads = 0; heads <= Math.min(first, second); heads++) {
    total += Math.exp(logarithm);
    logarithm += Math.log((n - heads) / (heads + 1));
  }
  return Math.min(1, 2 * total);
}

function pairedTest(runs) {
  const [first, second] = runs.map(run => run.dataset), section = h("section", { id: "paired-test" }, h("h3", {}, "Paired test"));
  const without = runs.find(run => !run.dataset.correct);
  if (without) {
    section.append(h("p", { class: "note" }, `Not comparable: the predictions of ${without.dataset.label} are not stored.`));
    return section;
  }
  if (first.images !== second.images) {
    const of = run => `${Number(run.tests).toLocaleString("en")}${run.split ? `, ${run.split} split` : ""}`;
    section.append(h("p", { class: "note" }, `Not comparable: the two runs were evaluated on different test images (A: ${of(first)}; B: ${of(second)}). A paired test needs the same images.`));
    return section;
  }
  const [one, other] = [first, second].map(run => Uint8Array.from(atob(run.correct), char => char.charCodeAt(0)));
  const counts = [0, 0, 0, 0], n = Number(first.tests); // neither, only B, only A, both
  for (let image = 0; image < n; image++) {
    const bit = bits => bits[image >> 3] >> (7 - (image & 7)) & 1;
    counts[2 * bit(one) + bit(other)]++;
  }
  const [neither, onlySecond, onlyFirst, both] = counts, p = exactTest(onlyFirst, onlySecond);
  const conclusion = p >= 0.05 ? "The two do not differ significantly" : `${onlyFirst > onlySecond ? "A" : "B"} is significantly more accurate`;
  section.append(
    h("p", {}, h("b", {}, conclusion), `: p = ${p < 0.001 ? p.toExponential(1) : p.toFixed(3)}, McNemar's exact test on the same ${n.toLocaleString("en")} test images.`),
    h("table", {},
      h("thead", {}, h("tr", {}, ...cells("th", ["test images", "B correct", "B wrong"]))),
      h("tbody", {},
        h("tr", {}, h("th", { scope: "row" }, "A correct"), ...cells("td", grouped(both, onlyFirst))),
        h("tr", {}, h("th", { scope: "row" }, "A wrong"), ...cells("td", grouped(onlySecond, neither))))),
    h("p", {}, h("small", {}, "The test compares the images that only one of the two predicts correctly. It is not corrected for the number of comparisons: among many pairs, some differ by chance.")),
  );
  return section;
}

function differences(runs) {
  const facts = runs.map(run => new Map([...run.querySelectorAll("section[data-facts]")].flatMap(section =>
    [...section.querySelectorAll("dt")].map(name => [`${section.dataset.facts}\n${name.textContent}`, name.nextElementSibling.textContent]))));
  const section = h("section", { id: "differences" }, h("h3", {}, "What differs"));
  const body = h("tbody"), equal = h("dl");
  for (const group of ["Network", "Training", "Data", "Results", "Efficiency", "Origin"]) {
    const keys = [...new Set(facts.flatMap(map => [...map.keys()]))].filter(key => key.startsWith(`${group}\n`));
    let heading = h("tr", { class: "group" }, h("th", { scope: "rowgroup", colspan: 3 }, group));
    for (const key of keys) {
      const name = key.slice(group.length + 1), values = facts.map(map => map.get(key) ?? "–");
      if (["time (UTC)", "run id"].includes(name)) continue; // of each run its own
      if (values[0] === values[1]) { equal.append(h("dt", {}, name), h("dd", {}, values[0])); continue; }
      if (heading) { body.append(heading); heading = null; }
      body.append(h("tr", {}, h("th", { scope: "row" }, name), ...cells("td", values)));
    }
  }
  section.append(
    h("table", {}, h("thead", {}, h("tr", {}, ...cells("th", ["", "A", "B"]))), body),
    h("details", {}, h("summary", {}, `Equal in both: ${equal.children.length / 2}`), equal),
  );
  return section;
}

function perClass(runs) {
  const reports = runs.map(run => new Map(JSON.parse(run.dataset.report).map(line => [line.name, line])));
  const section = h("section", { id: "per-class" }, h("h3", {}, "Metrics per class"));
  if (reports.some(report => !report.size)) {
    section.append(h("p", { class: "note" }, "Predictions of one of the two are not stored, so there are no metrics to compare."));
    return section;
  }
  const names = [...new Set(reports.flatMap(report => [...report.keys()]))];
  const box = h("div", { class: "metrics" });
  for (const [metric, title] of Object.entries({ recall: "recall", precision: "precision", f1: "F1" })) {
    const body = h("tbody");
    for (const name of names) {
      const [first, second] = reports.map(report => report.get(name)?.[metric]);
      const values = [first, second].map(value => value?.toFixed(3) ?? "–");
      const difference = first == null || second == null ? "–" : signed(second - first);
      body.append(h("tr", {}, h("th", { scope: "row" }, name), ...cells("td", [...values, difference])));
    }
    box.append(h("table", {}, h("thead", {}, h("tr", {}, ...cells("th", [title, "A", "B", "B − A"]))), body));
  }
  section.append(box);
  return section;
}

function overlaid(runs) {
  const section = h("section", { class: "curves" }, h("h3", {}, "Learning curves"));
  const curves = runs.map(run => JSON.parse(run.querySelector(".curves")?.dataset.rows ?? "[]"));
  curves.forEach((rows, index) => rows.length || section.append(h("p", { class: "note" }, `${"AB"[index]} has no learning curve.`)));
  const rows = curves.flatMap((rows, index) => rows.map(row => ({ ...row, run: "AB"[index] })));
  if (!rows.length) return section;
  section.dataset.rows = JSON.stringify(rows);
  const box = h("div", { class: "charts" });
  for (const name of ["accuracy", "loss"]) {
    box.append(h("figure", {}, h("figcaption", {}, `${name}; dotted lines mark the best epochs`), h("div", { class: "chart", "data-chart": `${name}-of-two` })));
  }
  section.append(box);
  return section;
}

function comparison(ids) {
  const runs = ids.map(stored_run);
  const heads = runs.map((run, index) => {
    const { label, accuracy, low, high } = run.dataset, tenth = value => Number(value).toFixed(3);
    return h("li", { class: `run-${"ab"[index]}` }, h("b", {}, "AB"[index]), " ", h("a", { href: `#${ids[index]}` }, label),
      h("br"), `test accuracy ${accuracy}, 95 % interval ${tenth(low)} to ${tenth(high)}`);
  });
  return [h("h2", { id: "view-title" }, "Two runs compared"), h("ul", { class: "pair" }, ...heads), pairedTest(runs), overlaid(runs),
    h("div", { class: "halves" }, differences(runs), perClass(runs))];
}

// ── the view of a run, or of two: open while the address names them ──
const dialog = element("view"), [print] = dialog.querySelectorAll("button");
let opener = null;
function open() {
  const name = decodeURIComponent(location.hash.slice(1)), pair = name.startsWith("compare=") && name.slice(8).split(",");
  const ids = pair || [name], body = dialog.lastElementChild;
  if ((pair && pair.length !== 2) || !ids.every(stored_run)) return dialog.close();
  if (pair) {
    tick(pair);
    body.replaceChildren(...comparison(pair));
  } else {
    body.innerHTML = element(name).textContent;
  }
  opener = location.hash;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  for (const box of body.querySelectorAll(".chart")) draw(box, JSON.parse(box.closest("[data-rows]").dataset.rows));
}
dialog.addEventListener("close", () => {
  // Following a link to a part of the page takes the focus away: what opened the view gets it back.
  const links = [...document.querySelectorAll("table.runs tbody a")];
  const back = opener?.startsWith("#compare=") ? compare : links.find(link => link.hash === opener);
  back?.focus({ preventScroll: true });
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", event => event.target === dialog && dialog.close());
print.addEventListener("click", () => {
  document.documentElement.dataset.print = "view";
  window.print();
});
addEventListener("hashchange", open);
open();

// ── printing: all runs and all charts, whatever is filtered or folded; or the view alone, by its button ──
const paper = element("paper");
let unfolded = [];

addEventListener("beforeprint", () => {
  document.documentElement.classList.remove("dark");
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const part of unfolded) part.open = true;
  if (document.documentElement.dataset.print) return;
  printed = true;
  const all = { ...Object.fromEntries(new FormData(form)), search: "", ...Object.fromEntries(columns.map(name => [name, ""])) };
  show(all);
  startVega();
  // Vega waits for nothing but promises that are kept at once, and printing begins after these.
  const figure = (title, name, rows, width, height, classes) => {
    const box = h("div", { class: "chart" });
    vegaEmbed(box, { ...specification(name, rows, classes, width), width, height }, options);
    return h("figure", {}, h("figcaption", {}, title), box);
  };
  if (points.length) paper.append(h("h2", {}, "Accuracy and cost"), h("div", { class: "costs" }, ...[...boxes].map(box =>
    figure(box.previousElementSibling.textContent, box.dataset.chart, points, 420, 260))));
  const runs = points.map(point => [point, stored_run(point.id)]);
  const sheets = h("div", { class: "sheets" });
  if (runs.some(([, run]) => run.querySelector(".chart"))) paper.append(h("h2", {}, "Learning curves and confusion matrices"), sheets);
  for (const [point, run] of runs) {
    const parts = [...run.querySelectorAll(".chart")].filter(box => !box.closest(".calibration")).map(box => {
      const name = box.dataset.chart, rows = JSON.parse(box.closest("[data-rows]").dataset.rows), classes = Number(box.dataset.size);
      return figure(classes ? "confusion matrix" : name, name, rows, classes ? 190 : 170, classes ? 190 : 58, classes);
    });
    if (parts.length) sheets.append(h("section", {}, h("h3", {}, point.run), h("div", { class: "sheet" }, ...parts)));
  }
});
addEventListener("afterprint", () => {
  set_or_remove_dark_class();
  for (const part of unfolded) part.open = false;
  delete document.documentElement.dataset.print;
  paper.replaceChildren();
  printed = false;
  update();
});
document.documentElement.dataset.ready = "";
