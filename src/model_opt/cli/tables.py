"""Results as tables for a terminal."""

from rich.console import Console
from rich.table import Table

from model_opt.autotuner.result import CompressionResult, Figure


def print_result(result: CompressionResult, console: Console) -> None:
    """The figures before and after, the plan, the Pareto set and the notes."""
    console.print(figures_table(result))
    console.print(f"[bold]plan[/] {result.plan}")
    console.print(f"[bold]techniques[/] {', '.join(t.value for t in result.techniques) or 'none'}")
    kept = "all constraints hold" if result.feasible else "[red]the constraints do not all hold[/]"
    console.print(f"[bold]constraints[/] {', '.join(f'{k}={v:g}' for k, v in result.constraints.items())}: {kept}")
    for worker, count in sorted(result.fleet.get("measured_by", {}).items()):
        console.print(f"[bold]worker[/] {worker} measured {count} plans", highlight=False)
    if result.fleet:
        console.print(
            f"[bold]coordinator[/] merged {result.fleet['settled']} measurements into {result.fleet['rows']} rows"
        )
    console.print(pareto_table(result))
    for note in result.notes:
        console.print(f"- {note}", style="dim", highlight=False)


def figures_table(result: CompressionResult) -> Table:
    """Accuracy, size and latency of the original and of the optimised model, with 95 % intervals."""
    table = Table(title=f"{result.method}: {len(result.measured)} plans measured in {result.seconds['total']:.0f} s")
    for heading in ("", "before", "after", "ratio", "95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    base, figures = result.baseline, result.figures
    drop = figures["accuracy_drop"]
    table.add_row(
        f"accuracy ({result.accuracy_source})",
        f"{base['accuracy']:.2%}",
        f"{base['accuracy'] - drop.value:.2%}",
        f"{drop.value:+.2%} lost",
        f"{drop.low:+.2%} … {drop.high:+.2%}",
    )
    ratio = figures["compression_ratio"]
    size_kb = base["size_bytes"] / 1e3
    table.add_row("size", f"{size_kb:,.1f} kB", f"{size_kb / ratio.value:,.1f} kB", f"{ratio.value:.2f}x", "exact")
    speedup = figures["speedup"]
    after = figures.get("latency_ms", Figure.exact(base["latency_ms"] / speedup.value)).value
    table.add_row(
        f"latency (batch {result.context['batch']}, {result.context['threads']} threads)",
        f"{after * speedup.value:.3f} ms",
        f"{after:.3f} ms",
        f"{speedup.value:.2f}x",
        f"{speedup.low:.2f}x … {speedup.high:.2f}x",
    )
    if memory := figures.get("peak_memory_ratio"):
        interval = f"{memory.low:.2f}x … {memory.high:.2f}x"
        table.add_row("peak memory, before ÷ after", "", "", f"{memory.value:.2f}x", interval)
    return table


def pareto_table(result: CompressionResult) -> Table:
    """The measured plans that no other beats in speed, size and accuracy at once."""
    table = Table(title="best trade-offs measured")
    for heading in ("faster", "smaller", "lost"):
        table.add_column(heading, justify="right")
    table.add_column("plan", overflow="fold")
    for point in result.pareto[:12]:
        chosen = " *" if point.plan == result.plan else ""
        table.add_row(
            f"{point.speedup:.2f}x",
            f"{point.compression_ratio:.2f}x",
            f"{point.accuracy_drop:.2%}",
            f"{point.plan}{chosen}",
        )
    return table
