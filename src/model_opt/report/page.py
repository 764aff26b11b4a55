"""A search as one HTML file that needs nothing else: figures, tables that say the same, where knowledge came from."""

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from model_opt import __version__
from model_opt.atomic import write_atomically
from model_opt.autotuner.figures import duration, faster, figure_text, interval_text, lost, smaller, versus
from model_opt.autotuner.result import CompressionResult
from model_opt.errors import InvalidInput, MissingDependency
from model_opt.report.chart import Chart
from model_opt.report.charts import charts
from model_opt.report.view import View


def write_report(view: View, path: Path) -> None:
    """Writes the report to `path`. Raises `MissingDependency` without plotly, `InvalidInput` where it cannot write."""
    text = report_page(view)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{path.parent} cannot be made: {error.strerror or error}") from error
    write_atomically(path, text.encode())


def report_page(view: View) -> str:
    """The whole page as text."""
    shown = charts(view)
    figures = {chart.key: chart.figure for chart in shown if chart.figure is not None}
    draw = "for (const [key, figure] of Object.entries(FIGURES)) draw(document.getElementById(key), figure);"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(view.name)} – model_opt</title><link rel="icon" href="data:,">
<style>{asset("page.css")}</style></head><body>
<a class="skip" href="#main">To the figures</a>
<header class="top">{head(view)}</header><main id="main">
{body(view, shown)}
<footer>Made by model_opt {__version__}. Nothing on this page is fetched from elsewhere.</footer></main>
<script>{plotly_js()}</script><script>const FIGURES = {_script(figures)};
{asset("draw.js")}
{draw}</script></body></html>
"""


def plotly_js() -> str:
    """Plotly's own script. Raises `MissingDependency`."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependency("plotly", "report") from error
    text: str = get_plotlyjs()
    return text


def asset(name: str) -> str:
    """A style sheet or script that lies beside this module."""
    return resources.files("model_opt.report").joinpath("assets", name).read_text()


def head(view: View) -> str:
    """Name, state, key figures and the chosen plan."""
    kind = "now" if view.running else "bad" if view.state == "interrupted" else ""
    badge = f'<span class="badge {kind}">{escape(view.state)}</span>'
    said = f'<p>{badge} <span class="soft">{escape(_summary(view))}</span></p>'
    return f"<h1>{escape(view.name)}</h1>{said}{_tiles(view)}{_plan(view)}"


def body(view: View, shown: Sequence[Chart]) -> str:
    """The charts, where knowledge came from, the notes, and where it was measured."""
    return "\n".join([*map(section, shown), _origins(view), _notes(view), _facts(view)])


def section(chart: Chart) -> str:
    """A chart with its table, or the reason why it is missing."""
    inside = f'<p class="missing">{escape(chart.missing)}</p>'
    if chart.figure is not None:
        label = escape(f"{chart.title}; the table below says the same")
        inside = f'<div class="plot" id="{chart.key}" role="img" aria-label="{label}"></div>{_folded(chart)}'
    return (
        f'<section aria-labelledby="{chart.key}-title"><h2 id="{chart.key}-title">{escape(chart.title)}</h2>'
        f'<p class="soft">{escape(chart.about)}</p>{inside}</section>'
    )


def _folded(chart: Chart) -> str:
    return f"<details><summary>As a table</summary>{table(chart.heads, chart.rows)}</details>" if chart.rows else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table that scrolls by itself where it is too wide."""
    top = "".join(f"<th>{escape(each)}</th>" for each in heads)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _summary(view: View) -> str:
    parts = [view.count(), view.where]
    parts += [f"now: {view.phase}"] if view.running and view.phase else []
    if view.result is not None:
        parts += [view.result.method, duration(view.result.seconds["total"])]
    return ", ".join(parts)


def _tiles(view: View) -> str:
    if view.result is None:
        best = view.headline() or "none yet"
        tiles = [(best, "best within the constraints"), (f"{view.settled}/{view.budget}", "plans settled")]
    else:
        tiles = _figures(view.result)
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in tiles
    ) + "</div>"  # fmt: skip


def _figures(result: CompressionResult) -> list[tuple[str, str]]:
    """The figures as values, and what they are with their intervals."""
    figures = result.figures
    speed, drop = figures["speedup"], figures["accuracy_drop"]
    _, _, how = faster(speed.value).partition(" ")
    shrunk, _, so = smaller(figures["compression_ratio"].value).partition(" ")
    share, _, gone = lost(drop.value).partition(" ")
    tiles = [
        (figure_text(speed).partition(" ")[0], f"{how}; 95 %: {interval_text(speed)}"),
        (shrunk, f"{so}, exact"),
        (share, f"of accuracy {gone}; 95 %: {lost(drop.low)} … {lost(drop.high)}"),
    ]
    if (memory := figures.get("peak_memory_ratio")) is not None:
        tiles.append((versus(memory.value, "more"), f"peak memory, before ÷ after; {interval_text(memory, 'more')}"))
    return tiles


def _plan(view: View) -> str:
    if view.chosen is None:
        return ""
    chips = [f"{choice.decision} = {choice.option}" for choice in view.chosen.choices] or ["the model as it is"]
    bounds = ", ".join(f"{name} = {bound:g}" for name, bound in view.constraints.items())
    badge = ""
    if view.result is not None:
        good = view.result.feasible
        words = "✓ all constraints hold" if good else "✗ the constraints do not all hold"
        badge = f' <span class="badge {"good" if good else "bad"}">{words}</span>'
    items = "".join(f"<li>{escape(chip)}</li>" for chip in chips)
    title = "Best so far" if view.running else "Chosen plan"
    under = f" under {escape(bounds)}" if bounds else ""
    return f'<p class="soft">{title}{under}:{badge}</p><ul class="chips">{items}</ul>'


def _origins(view: View) -> str:
    known = view.result.knowledge if view.result is not None else {}
    title = '<section><h2>Prior knowledge</h2><p class="soft">What earlier measurements the search started from.</p>'
    if view.result is None:
        return f'{title}<p class="missing">This is kept with the result, at the end.</p></section>'
    if not known.get("rows"):
        why = "It was asked to start from nothing." if view.result.method == "mcts" else "No similar model was known."
        return f'{title}<p class="missing">{why}</p></section>'
    whose = "this very architecture" if known["exact"] else "similar architectures"
    said = f"<p>{known['rows']} measured plans, {known['samples']} samples, of {whose}.</p>"
    rows = [[key, f"{share:.1%}"] for key, share in sorted(known["signatures"].items(), key=lambda i: -i[1])]
    origins = [[origin] for origin in known["origins"]]
    return f"{title}{said}{table(('signature', 'how alike'), rows)}{table(('origin',), origins)}</section>"


def _notes(view: View) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in view.notes)
    return f"<section><h2>Notes</h2><ul>{items}</ul></section>" if items else ""


def _facts(view: View) -> str:
    if view.result is None:
        return ""
    base, context = view.result.baseline, view.result.context
    rows = [
        ["original: latency", f"{view.result.original_ms:.3f} ms"],
        ["original: size", f"{base['size_bytes'] / 1e3:,.1f} kB"],
        ["original: accuracy", f"{base['accuracy']:.2%} ({view.result.accuracy_source})"],
    ]
    rows += [["takes", "; ".join(view.result.takes)]] if view.result.takes else []
    rows += [[name, str(value)] for name, value in context.items() if not isinstance(value, dict | list)]
    rows += [[f"seconds: {name}", f"{value:.1f}"] for name, value in view.result.seconds.items()]
    return f"<section><h2>Where it was measured</h2>{table(('what', 'value'), rows)}</section>"


def _script(value: object) -> str:
    """JSON that may stand in a script: no `</`, no odd line ends, no NaN."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
