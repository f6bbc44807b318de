// Elements that are made of text alone, numbers as people write them, and charts by uPlot with their numbers in a table.
"use strict";

// Control and direction marks, and marks stacked on a letter, are spelled out: nothing in a text is invisible, turned
// around, or on another line than it belongs to.
const STACKED = /(?<=[\p{Mn}\p{Me}]{4})[\p{Mn}\p{Me}]/gu;
const HIDDEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
const spelled = (mark) => "\\u" + mark.codePointAt(0).toString(16).padStart(4, "0");
const shown = (text) => String(text).replace(HIDDEN, spelled).replace(STACKED, spelled);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  for (const child of children) {
    if (child == null) continue;
    element.append(child instanceof Node ? child : document.createTextNode(shown(child)));
  }
  return element;
}
const byId = (id) => document.getElementById(id);
const fill = (id, ...children) => byId(id).replaceChildren(...children.filter((each) => each != null));

function number(value, digits = 3) {
  if (value == null) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size && size < 10 ** -digits ? value.toExponential(1) : value.toFixed(size >= 1000 ? 0 : digits);
}
const signed = (value, digits = 2) => (value == null ? "–" : (value < 0 ? "−" : "+") + number(Math.abs(value), digits));

function table(heads, rows, caption) {
  const cells = (tag, texts) => texts.map((text, at) => make(tag, tag === "th" ? { scope: "col" } : at ? {} : { class: "name" }, text));
  return make("div", { class: "wide", tabindex: "0", role: "group", "aria-label": caption },
    make("table", {}, make("thead", {}, make("tr", {}, ...cells("th", heads))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells("td", row))))));
}

const COLOURS = { a: "--a", b: "--b", c: "--c", d: "--d", e: "--e", faint: "--faint", dashed: "--soft", other: "--other" };
const colour = (style) => getComputedStyle(document.documentElement).getPropertyValue(COLOURS[style.split(" ")[0]]).trim();

// Series of their own steps as columns over all steps.
function aligned(chart) {
  const steps = [...new Set(chart.series.flatMap((each) => each.x))].sort((p, q) => p - q);
  const place = new Map(steps.map((x, at) => [x, at]));
  const spread = (x, y) => {
    const column = new Array(steps.length).fill(null);
    x.forEach((step, at) => (column[place.get(step)] = y[at]));
    return column;
  };
  const columns = chart.series.map((each) => spread(each.x, each.y));
  const ends = chart.series.map((each) => each.low && { low: spread(each.x, each.low), high: spread(each.x, each.high) });
  return { steps, columns, ends };
}

const drawn = []; // functions that draw every chart again, in other colours or another width

function figure(chart) {
  const place = make("div", { class: "plot" });
  const box = make("figure", { class: "card" + (chart.small ? " small" : ""), "aria-label": chart.title }, make("h3", {}, chart.title), place);
  if (!chart.series.length) {
    place.replaceWith(make("p", { class: "missing" }, chart.missing));
    return box;
  }
  const data = aligned(chart);
  if (chart.note) box.append(make("figcaption", {}, chart.note));
  const numbers = make("details", { class: "numbers" }, make("summary", {}, "Numbers"));
  numbers.addEventListener("toggle", () => {
    if (numbers.open && numbers.children.length === 1) {
      const heads = [chart.x_label, ...chart.series.map((each) => each.label)];
      const rows = data.steps.map((x, row) => [number(x), ...data.columns.map((column) => number(column[row]))]);
      numbers.append(table(heads, rows, "Numbers of the chart: " + chart.title));
    }
  });
  box.append(numbers);
  let plot = null;
  const draw = () => {
    if (!place.clientWidth) return;
    if (plot) plot.destroy();
    plot = plotted(chart, data, place);
  };
  new ResizeObserver(() => {
    if (!plot) draw();
    else if (plot.width !== place.clientWidth) plot.setSize({ width: place.clientWidth, height: plot.height });
  }).observe(place);
  drawn.push(draw);
  return box;
}

function plotted(chart, data, place) {
  const css = getComputedStyle(document.documentElement);
  const [ink, grid] = [css.getPropertyValue("--soft").trim(), css.getPropertyValue("--grid").trim()];
  const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
  let columns = data.columns;
  if (chart.stacked) {
    columns = columns.map((_, at) => data.steps.map((__, row) => columns.slice(0, at + 1).reduce((sum, each) => sum + (each[row] || 0), 0)));
  }
  const order = chart.stacked ? columns.map((_, at) => columns.length - 1 - at) : columns.map((_, at) => at);
  const series = order.map((at) => {
    const each = chart.series[at];
    const ink = colour(each.style);
    const dots = each.style.includes("dots") || data.steps.length === 1;
    return {
      label: each.label,
      stroke: ink,
      width: each.style.startsWith("faint") ? 1.2 : 2,
      dash: each.style.startsWith("dashed") ? [6, 4] : each.style.startsWith("other") ? [2, 3] : undefined,
      fill: chart.stacked ? ink + "b0" : undefined,
      spanGaps: true,
      points: { show: dots, size: 7, fill: ink },
      value: (_, __, ___, row) => (row == null ? "" : number(data.columns[at][row])),
    };
  });
  const bars = (u) => {
    u.ctx.save();
    data.ends.forEach((end, at) => {
      if (!end) return;
      u.ctx.strokeStyle = colour(chart.series[at].style);
      u.ctx.lineWidth = devicePixelRatio * 1.3;
      u.ctx.globalAlpha = 0.55;
      data.steps.forEach((x, row) => {
        if (end.low[row] == null) return;
        const across = u.valToPos(x, "x", true);
        u.ctx.beginPath();
        u.ctx.moveTo(across, u.valToPos(end.low[row], "y", true));
        u.ctx.lineTo(across, u.valToPos(end.high[row], "y", true));
        u.ctx.stroke();
      });
    });
    if (chart.diagonal) {
      u.ctx.strokeStyle = ink;
      u.ctx.setLineDash([4, 5]);
      u.ctx.beginPath();
      u.ctx.moveTo(u.valToPos(chart.lowest, "x", true), u.valToPos(chart.lowest, "y", true));
      u.ctx.lineTo(u.valToPos(chart.highest, "x", true), u.valToPos(chart.highest, "y", true));
      u.ctx.stroke();
    }
    u.ctx.restore();
  };
  const pad = (low, high) => (high > low ? 0.06 * (high - low) : 0.5);
  return new uPlot({
    width: place.clientWidth,
    height: chart.small ? 130 : chart.section === "learning" ? 300 : 230,
    legend: { show: !chart.small, markers: { width: 0, fill: (u, at) => u.series[at].stroke() } },
    cursor: { y: false },
    scales: {
      x: { time: false, range: chart.diagonal ? () => [chart.lowest, chart.highest] : (_, low, high) => (low === high ? [low - 0.5, high + 0.5] : [low, high]) },
      y: {
        range: (_, low, high) => {
          const ends = data.ends.filter(Boolean).flatMap((end) => [...end.low, ...end.high]).filter((end) => end != null);
          [low, high] = [Math.min(low ?? 0, ...ends), Math.max(high ?? 1, ...ends)];
          const room = pad(low, high);
          return [chart.lowest ?? low - room, chart.highest ?? high + room];
        },
      },
    },
    series: [{ label: chart.x_label, value: (_, x) => (x == null ? "" : number(x)) }, ...series],
    axes: [
      { ...axis, size: chart.small ? 26 : 28, label: chart.small ? undefined : chart.x_label, labelSize: 18, labelGap: 0, space: 60 },
      { ...axis, size: 48, space: chart.small ? 32 : 36 },
    ],
    hooks: { draw: [bars] },
  }, [data.steps, ...order.map((at) => columns[at])], place);
}
