"use strict";
// Draws the charts and filters the tables. Python formats all numbers. Nothing is computed here.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const phone = matchMedia("(max-width: 51.99rem)");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const checked = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
  const chosen = (id) => Number(byId(id)?.value ?? 0);

  // Theme. Plotly needs the values of colours. The computed style of a probe element has them.
  const probe = byId("main").appendChild(element("span", { hidden: "" }));
  function colour(name) {
    probe.style.color = `var(--${name}, var(--soft))`;
    return getComputedStyle(probe).color;
  }
  const isDark = () => (root.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
  const hue = (loss) => colour(loss.own ? "xentx" : loss.framework);

  function themed(layout) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
      hoverlabel: {
        align: "left",
        bgcolor: colour("card"),
        bordercolor: colour("soft"),
        font: { color: colour("ink"), size: 13 },
      },
      dragmode: false, // a finger that starts on a chart still scrolls the page
      ...layout,
    };
  }
  const CONFIG = { displayModeBar: false, responsive: true };

  // Heat map
  function wrapped(text, width) {
    if (text.length <= width) return text;
    const cut = Math.max(...[" ", "(", ".", "_", ":"].map((c) => text.lastIndexOf(c, width))) + 1;
    return `${text.slice(0, cut)}<br>${text.slice(cut)}`;
  }

  function drawHeat() {
    const map = data.heat[chosen("heat-dtype")];
    const part = map.parts[checked("heat-part")];
    const rows = data.losses.map((_, at) => at);
    const narrow = phone.matches;
    const [low, high] = data.colourRange;
    const marker = (loss) => `<span style="color:${hue(loss)}">■</span> `;
    const label = (loss, width) => marker(loss) + wrapped(loss.id, width);
    const own = data.losses.filter((loss) => loss.own).length;
    const height = narrow ? 44 : 30;
    const trace = {
      type: "heatmap",
      x: map.regimes,
      y: rows,
      z: part.z,
      text: part.text,
      texttemplate: narrow ? "" : "%{text}",
      textfont: { size: 11 },
      hovertext: part.hover,
      hoverinfo: "text",
      hoverongaps: true,
      zmin: low,
      zmax: high,
      showscale: false,
      xgap: 2,
      ygap: narrow ? 24 : 2,
      colorscale: [[0, "heat-0"], [0.165, "heat-1"], [0.35, "heat-2"], [0.65, "heat-3"], [1, "heat-4"]]
        .map(([at, name]) => [at, colour(name)]),
    };
    // On a phone there is no room beside the cells, so each label is above its row.
    const above = rows.map((at) => ({
      x: 0, xref: "paper", xanchor: "left", y: at, yanchor: "bottom", yshift: 8,
      showarrow: false, align: "left", font: { size: 11 },
      text: marker(data.losses[at]) + data.losses[at].id.slice(0, 50) + (data.losses[at].id.length > 50 ? "…" : ""),
    }));
    Plotly.react("heat", [trace], themed({
      height: rows.length * height + (narrow ? 150 : 130),
      margin: { l: narrow ? 0 : 330, r: narrow ? 4 : 44, t: narrow ? 130 : 110, b: 10 },
      xaxis: { side: "top", tickangle: narrow ? -90 : -40, showgrid: false, fixedrange: true, ticks: "" },
      yaxis: {
        range: [rows.length - 0.5, narrow ? -0.9 : -0.5], showgrid: false, zeroline: false, fixedrange: true, ticks: "",
        showticklabels: !narrow, tickmode: "array", tickvals: rows,
        ticktext: data.losses.map((loss) => label(loss, 46)),
      },
      annotations: narrow ? above : [],
      shapes: own && own < rows.length && !narrow
        ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: own - 0.5, y1: own - 0.5, line: { color: colour("soft"), width: 1 } }]
        : [],
    }), CONFIG);
  }

  function labelScale() {
    const [low, high] = data.colourRange;
    const ticks = [[0, "1"], [1, "10"], [2, "100"], [4, "1e4"], [6, "1e6"], [high, "∞ ULP"]];
    byId("scale-ticks").replaceChildren(...ticks.map(([at, text]) =>
      element("li", { style: `left:${(100 * (at - low)) / (high - low)}%` }, text)));
  }

  // The confidence gap
  // The curves of frameworks with equal results overlap. Markers of different sizes show all of them.
  const RINGS = new Map(Object.keys(data.frameworks).map((name, at) => [name, 4 + 1.6 * at]));

  function drawGap() {
    const gap = data.gaps[chosen("gap-dtype")];
    const seen = new Set();
    const traces = gap.parts[checked("gap-part")].map((curve) => {
      const loss = data.losses[curve.loss];
      const group = loss.own ? "xentx" : loss.framework;
      const first = !seen.has(group);
      seen.add(group);
      return {
        type: "scatter", mode: "lines+markers", x: curve.x, y: curve.y,
        name: loss.own ? "xentx" : data.frameworks[group], legendgroup: group, showlegend: first,
        hovertext: curve.hover, hoverinfo: "text",
        line: { color: hue(loss), width: loss.own ? 2.5 : 1.3 },
        marker: { color: hue(loss), size: loss.own ? 4 : RINGS.get(group), symbol: loss.own ? "circle" : "circle-open" },
        opacity: loss.caveat ? 0.4 : 1,
      };
    });
    const lines = [
      { type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: colour("soft"), width: 1, dash: "dot" } },
      { type: "line", yref: "paper", y0: 0, y1: 1, x0: gap.lost, x1: gap.lost, line: { color: colour("soft"), width: 1, dash: "dot" } },
    ];
    const grid = { gridcolor: colour("line"), zeroline: false, fixedrange: true };
    Plotly.react("gap", traces, themed({
      height: phone.matches ? 420 : 480,
      margin: { l: phone.matches ? 44 : 64, r: 8, t: 20, b: 50 },
      hovermode: "closest",
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      xaxis: { ...grid, title: { text: "gap between the target’s logit and the other" }, range: [0.5, 40.5] },
      yaxis: {
        ...grid, type: "log", exponentformat: "e", dtick: phone.matches ? 2 : 1, ticklabelstep: 1,
        title: phone.matches ? undefined : { text: "relative error" },
        range: [Math.log10(gap.least) - 0.3, 0.8],
      },
      shapes: lines,
      annotations: [
        { x: 40, y: 0, yanchor: "bottom", yshift: 6, xanchor: "right", showarrow: false, text: "loss is 0", font: { color: colour("soft") } },
        { x: gap.lost, y: 0.5, yref: "paper", xanchor: "left", showarrow: false, text: ` ${gap.bits} ln 2`, font: { color: colour("soft") } },
      ],
    }), CONFIG);
  }

  // Deviations by group
  function drawDeviations() {
    const { groups, cases, counts } = data.deviations;
    const names = groups.map((name, at) => `${name} (${cases[at]})`);
    const traces = Object.entries(data.frameworks).map(([framework, name], at) => ({
      type: "bar", orientation: "h", name, y: names, x: counts[at],
      marker: { color: colour(framework) },
      hovertemplate: `${name}: %{x} of %{y}<extra></extra>`,
    }));
    const grid = { gridcolor: colour("line"), zeroline: false, fixedrange: true };
    Plotly.react("deviations", traces, themed({
      height: 90 + groups.length * (20 + 9 * traces.length),
      barmode: "group", bargap: 0.25,
      margin: { l: 8, r: 8, t: 20, b: 50 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "normal" },
      xaxis: { ...grid, title: { text: "corner cases" } },
      yaxis: { ...grid, autorange: "reversed", automargin: true, ticks: "" },
    }), CONFIG);
  }

  // Corner cases
  function filterCorners() {
    const text = byId("corner-text").value.trim().toLowerCase();
    const group = byId("corner-group").value;
    const deviations = byId("corner-deviations").checked;
    const shown = new Set([...document.querySelectorAll('input[name="framework"]:checked')].map((box) => box.value));
    for (const cell of document.querySelectorAll(".corners [data-framework]:is(th, td)")) {
      cell.hidden = !shown.has(cell.dataset.framework);
    }
    let count = 0;
    let total = 0;
    for (const body of document.querySelectorAll(".corners tbody")) {
      let left = 0;
      for (const row of body.querySelectorAll(".case")) {
        const cells = [...row.cells].filter((cell) => !cell.hidden);
        row.hidden = (group && body.dataset.group !== group)
          || (deviations && !cells.some((cell) => "deviates" in cell.dataset))
          || (text && !cells.some((cell) => cell.textContent.toLowerCase().includes(text)));
        left += !row.hidden;
        total += 1;
      }
      body.hidden = !left;
      count += left;
    }
    byId("corner-count").textContent = `${count} of ${total} corner cases`;
  }

  // Porting
  function fillPorts() {
    const groups = new Map();
    data.losses.forEach((loss, at) => {
      const name = loss.own ? "xentx" : data.frameworks[loss.framework];
      groups.set(name, [...(groups.get(name) ?? []), [loss, at]]);
    });
    for (const select of [byId("port-from"), byId("port-to")]) {
      for (const [name, members] of groups) {
        select.append(element("optgroup", { label: name },
          ...members.map(([loss, at]) => element("option", { value: at }, loss.id))));
      }
    }
    const natives = data.losses.map((loss, at) => [loss, at]).filter(([loss]) => !loss.own);
    const find = (...ids) => natives.find(([loss]) => ids.includes(loss.id))?.[1];
    const from = find("torch:F.cross_entropy") ?? natives[0]?.[1] ?? 0;
    byId("port-from").value = from;
    byId("port-to").value = find("optax:softmax_cross_entropy_with_integer_labels")
      ?? natives.find(([loss, at]) => at !== from && loss.framework !== data.losses[from].framework)?.[1]
      ?? natives.find(([, at]) => at !== from)?.[1] ?? 0;
  }

  function table(caption, headings, rows) {
    return element("table", { class: "port", role: "table" },
      element("caption", {}, caption),
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" },
        ...headings.map((heading) => element("th", { scope: "col", role: "columnheader" }, heading)))),
      element("tbody", { role: "rowgroup" }, ...rows.map(([first, ...rest]) => element("tr", { role: "row" },
        element("th", { scope: "row", role: "rowheader" }, first),
        ...rest.map((content, at) => element("td", { role: "cell", "data-label": ["from", "to"][at] }, content))))));
  }

  function answerOf(corner, at) {
    const answer = corner.answers[corner.of[at]];
    if (!answer) return null;
    const [text, error, deviates] = answer;
    return { text, error, deviates };
  }

  function drawPort() {
    const [a, b] = [chosen("port-from"), chosen("port-to")];
    const [from, to] = [data.losses[a], data.losses[b]];
    const traits = [...new Set([...Object.keys(from.traits), ...Object.keys(to.traits)])];
    const spelled = (value) => (value === undefined ? element("span", { class: "none" }, "none") : value);
    const spelling = traits
      .filter((name) => from.traits[name] !== to.traits[name])
      .map((name) => [name, spelled(from.traits[name]), spelled(to.traits[name])]);

    const shown = ({ text, deviates }) => element("b", deviates ? { class: "off" } : {}, text);
    let both = 0;
    const changes = new Map();
    for (const corner of data.corners) {
      const [before, after] = [answerOf(corner, a), answerOf(corner, b)];
      if (!before || !after) continue;
      both += 1;
      if (before.text === after.text || (before.error && after.error)) continue;
      const title = element("span", {}, corner.title, element("small", {}, `xentx: ${corner.rule}`));
      changes.set(corner.group, [...(changes.get(corner.group) ?? []), [title, shown(before), shown(after)]]);
    }
    const count = [...changes.values()].reduce((sum, rows) => sum + rows.length, 0);
    byId("port-count").textContent = a === b
      ? "Choose two different losses."
      : `${count} of the ${both} corner cases that both support have different results. ${spelling.length} properties differ.`;
    if (a === b) return byId("port").replaceChildren();
    const parts = [];
    if (spelling.length) parts.push(element("h3", {}, "Properties"), table("Options, reductions and arguments that differ", ["Property", from.id, to.id], spelling));
    if (count) parts.push(element("h3", {}, "Results"), element("p", { class: "count" }, "Results that deviate from xentx’s rule are coloured."));
    for (const [group, rows] of changes) parts.push(table(group, ["Case", from.id, to.id], rows));
    byId("port").replaceChildren(...parts);
  }

  // Events
  function drawCharts() {
    if (data.corners.length) drawDeviations();
    if (data.heat.length) drawHeat();
    if (data.gaps.length) drawGap();
  }
  function setTheme(theme) {
    if (theme) root.dataset.theme = theme;
    byId("theme").setAttribute("aria-pressed", isDark());
    drawCharts();
  }
  const on = (id, event, action) => byId(id)?.addEventListener(event, action);
  on("theme", "click", () => setTheme(isDark() ? "light" : "dark"));
  systemDark.addEventListener("change", () => setTheme());
  phone.addEventListener("change", drawCharts);
  for (const [name, draw] of [["heat", drawHeat], ["gap", drawGap]]) {
    on(`${name}-dtype`, "change", draw);
    for (const radio of document.querySelectorAll(`input[name="${name}-part"]`)) radio.addEventListener("change", draw);
  }
  for (const event of ["input", "change"]) on("filters", event, filterCorners);
  on("filters", "submit", (event) => event.preventDefault());
  on("port-from", "change", drawPort);
  on("port-to", "change", drawPort);
  on("port-swap", "click", () => {
    const [from, to] = [byId("port-from"), byId("port-to")];
    [from.value, to.value] = [to.value, from.value];
    drawPort();
  });
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; setTheme("light"); });
  addEventListener("afterprint", () => {
    if (before === undefined) delete root.dataset.theme;
    setTheme(before);
  });

  if (data.heat.length) labelScale();
  setTheme();
  fillPorts();
  drawPort();
})();
