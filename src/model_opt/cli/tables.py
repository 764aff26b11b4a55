"""Results as tables for a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model_opt.autotuner.figures import duration, figure_text, interval_text, lost, versus
from model_opt.autotuner.pareto_points import ParetoPoint
from model_opt.autotuner.result import CompressionResult
from model_opt.autotuner.tally import Tally


def print_result(result: CompressionResult, console: Console) -> None:
    """The figures before and after, the plan, the Pareto set and the notes."""
    console.print(figures_table(result))
    _say(console, "plan", str(result.plan))
    if result.takes:
        _say(console, "takes", "; ".join(result.takes))
    _say(console, "techniques", ", ".join(t.value for t in result.techniques) or "none")
    bounds = ", ".join(f"{name}={bound:g}" for name, bound in result.constraints.items())
    kept = ("all constraints hold", "") if result.feasible else ("the constraints do not all hold", "red")
    _say(console, "constraints", f"{bounds}: ", kept)
    for worker, count in sorted(result.fleet.get("measured_by", {}).items()):
        _say(console, "worker", f"{worker} settled {count} plans")
    if result.fleet:
        _say(
            console,
            "coordinator",
            f"merged {result.fleet['settled']} measurements into {result.fleet['rows']} rows",
        )
    console.print(pareto_table(result))
    for note in result.notes:
        console.print(Text(f"- {note}", style="dim"))


def _say(console: Console, name: str, *words: str | tuple[str, str]) -> None:
    """A line that begins with a bold word. What users wrote may hold brackets: it is text, not markup."""
    console.print(Text.assemble((name, "bold"), " ", *words))


def figures_table(result: CompressionResult) -> Table:
    """Accuracy, size and latency of the original and of the optimised model, with 95 % intervals."""
    told = f"{result.method}: {Tally.of(result.observations)} in {duration(result.seconds['total'])}"
    table = Table(title=Text(told))
    for heading in ("", "before", "after", "ratio", "95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    base, figures = result.baseline, result.figures
    drop = figures["accuracy_drop"]
    table.add_row(
        Text(f"accuracy ({result.accuracy_source})"),
        f"{base['accuracy']:.2%}",
        "" if result.accuracy is None else f"{result.accuracy:.2%}",
        lost(drop.value),
        f"{lost(drop.low)} … {lost(drop.high)}",
    )
    ratio = figures["compression_ratio"]
    size_kb = base["size_bytes"] / 1e3
    table.add_row(
        "size",
        f"{size_kb:,.1f} kB",
        f"{size_kb / ratio.value:,.1f} kB",
        _smaller(ratio.value),
        interval_text(ratio, "larger"),
    )
    speedup = figures["speedup"]
    table.add_row(
        f"latency (batch {result.context['batch']}, {result.context['threads']} threads)",
        f"{result.original_ms:.3f} ms",
        f"{result.original_ms / speedup.value:.3f} ms",
        figure_text(speedup),
        interval_text(speedup),
    )
    if memory := figures.get("peak_memory_ratio"):
        table.add_row("peak memory", "", "", versus(memory.value, "more"), interval_text(memory, "more"))
    return table


def pareto_table(result: CompressionResult) -> Table:
    """The measured plans that no other beats in speed, size and accuracy at once."""
    table = Table(title="best trade-offs measured; * is the answer")
    for heading in ("faster", "smaller", "lost"):
        table.add_column(heading, justify="right")
    table.add_column("plan", overflow="fold")
    for point in result.pareto[:12]:
        table.add_row(*_cells(point), Text(f"{point.plan}{' *' if point.plan == result.plan else ''}"))
    return table


def _cells(point: ParetoPoint) -> tuple[str, str, str]:
    share = lost(point.accuracy_drop)
    return versus(point.speedup, "slower"), _smaller(point.compression_ratio), share.removesuffix(" lost")


def _smaller(ratio: float) -> str:
    return versus(ratio, "larger")
