"use strict";
// Draws Plotly figures whose colours are names of the page's own variables, and draws them anew when those change.
const drawn = new Map();

function resolved(value, style) {
  if (typeof value === "string" && value.startsWith("var:")) return style.getPropertyValue("--" + value.slice(4)).trim();
  if (Array.isArray(value)) return value.map((one) => resolved(one, style));
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, resolved(one, style)]));
  return value;
}

function framed(layout) {
  const narrow = window.innerWidth < 640;
  const axis = { gridcolor: "var:line", linecolor: "var:line", zerolinecolor: "var:muted", automargin: true, fixedrange: narrow };
  const made = {
    height: narrow ? 340 : 420,
    margin: { l: narrow ? 46 : 60, r: 14, t: 14, b: 52 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: "var:ink", family: getComputedStyle(document.body).fontFamily, size: narrow ? 12 : 13 },
    hoverlabel: { bgcolor: "var:card", bordercolor: "var:muted", font: { color: "var:ink" } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
    dragmode: narrow ? false : "zoom",
    ...layout,
  };
  if (narrow && made.grid) Object.assign(made, { grid: { ...made.grid, rows: 2, columns: 1 }, height: 620 });
  for (const name of ["xaxis", "yaxis", "xaxis2", "yaxis2"])
    if (name.length === 5 || layout[name]) made[name] = { ...axis, ...(layout[name] || {}) };
  return made;
}

async function draw(element, figure) {
  drawn.set(element, figure);
  const style = getComputedStyle(document.documentElement);
  const config = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };
  await Plotly.react(element, resolved(figure.data, style), resolved(framed(figure.layout), style), config);
}

function redraw() {
  for (const [element, figure] of drawn) element.isConnected ? draw(element, figure) : drawn.delete(element);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if ((width < 640) !== (window.innerWidth < 640)) redraw();
  width = window.innerWidth;
});
