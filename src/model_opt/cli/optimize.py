"""`model-opt optimize`, `show` and `doctor`."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model_opt.errors import InvalidInput

if TYPE_CHECKING:
    from model_opt.autotuner.callbacks import Callbacks
    from model_opt.autotuner.result import CompressionResult
    from model_opt.autotuner.sources import ModelSource

Model = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME or path/to/file.py:factory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
MaxDrop = Annotated[str | None, typer.Option(help="A share: 2% or 0.02 is two points. Default 1%.")]


def optimize(
    model: Model,
    method: Annotated[str, typer.Option(help="rule_based, mcts or hybrid.")] = "hybrid",
    simulations: Annotated[int, typer.Option(help="Plans to measure at most, failures too.")] = 20,
    timeout: Annotated[float | None, typer.Option(help="Seconds for everything.")] = None,
    max_accuracy_drop: MaxDrop = None,
    min_speedup: Annotated[float | None, typer.Option(help="At least this many times faster.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Milliseconds for one call.")] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Megabytes of the saved model.")] = None,
    min_compression_ratio: Annotated[float | None, typer.Option(help="This many times smaller.")] = None,
    plan: Annotated[list[str] | None, typer.Option(help="A plan to try first: prune=0.5,precision=bf16")] = None,
    freeze: Annotated[list[str] | None, typer.Option(help="decision=option that every plan has.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A technique or decision not to use.")] = None,
    knowledge: Annotated[str | None, typer.Option(help="URL or .json path of the knowledge base.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the result and the optimised model.")] = None,
    weights: Annotated[str | None, typer.Option(help="Weights of torchvision or timm (may download).")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of torchvision and timm models.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to measure with.")] = None,
    seed: Annotated[int, typer.Option(help="Makes a search repeatable.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the decisions and what they would cost.")] = False,
    as_json: Json = False,
) -> None:
    """Compress a model and print measured figures.

    Examples:
      model-opt optimize my_model.py:make --max-accuracy-drop 2% --output out

      model-opt optimize my_model.py:make --timeout 600 --json

      model-opt optimize torchvision:resnet18 --exclude int8 --dry-run

    A file's factory returns a torch.nn.Module, or a mapping with `model` and any of `example_input`,
    `calibration_data`, `eval_fn`, `judge_as`, `train_data`, `fallback`.

    """
    from model_opt.autotuner.constraints import Constraints

    bounds: dict[str, float | str | None] = {
        "max_accuracy_drop": max_accuracy_drop,
        "min_speedup": min_speedup,
        "max_latency_ms": max_latency_ms,
        "max_size_mb": max_size_mb,
        "min_compression_ratio": min_compression_ratio,
    }
    wanted = {name: bound for name, bound in bounds.items() if bound is not None}
    Constraints.read(wanted)  # what cannot be used is said before anything is loaded
    frozen, first = pairs(freeze or []), [pairs(one.split(",")) for one in plan or []]
    with progress(as_json, timeout) as shown:
        source = loaded(model, shown, weights=weights, batch=batch, threads=threads)
        if dry_run:
            _dry_run(source, shown, frozen, exclude or [], simulations, as_json)
            return
        from model_opt.autotuner import IntelligentOptimizer

        _, result = IntelligentOptimizer(storage_backend=knowledge, callbacks=shown, seed=seed).optimize_auto(
            source.model,
            method,
            simulations,
            timeout,
            wanted,
            plans=first,
            freeze=frozen,
            exclude=exclude or [],
            output=output,
            **source.arguments,
        )
    tell_result(result, output, as_json)


def loaded(
    model: str,
    shown: "Callbacks",
    *,
    weights: str | None = None,
    batch: int = 8,
    threads: int | None = None,
) -> "ModelSource":
    """The model that the command line names; `shown` is told, since torch alone takes seconds to import."""
    shown.on_phase("load", None)
    from model_opt.autotuner.make_task import set_threads
    from model_opt.autotuner.sources import load_source

    if threads is not None:
        set_threads(threads)
    return load_source(model, weights=weights, batch=batch)


def tell_result(result: "CompressionResult", output: Path | None, as_json: bool) -> None:
    """The result on standard output, and what to do with it."""
    if as_json:
        print(json.dumps(result.summary()))
        return
    from rich.console import Console

    from model_opt.cli.tables import print_result

    print_result(result, Console())
    if output is not None:
        print(f"the optimised model and the result are in {output}: model-opt show {output}")


def show(
    result: Annotated[Path, typer.Argument(help="A result folder, or its result.json.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the Pareto front into this .svg, .png or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Print a saved result again, or draw its Pareto front.

    Example: model-opt show out --plot pareto.svg
    """
    from model_opt.autotuner.result import CompressionResult

    loaded = CompressionResult.load(result)
    if plot is not None:
        from model_opt.report.pareto import draw_pareto

        draw_pareto(loaded, plot)
        print(f"the Pareto front is in {plot}", file=sys.stderr)
    if as_json:
        print(loaded.to_json())
        return
    if plot is None:
        from rich.console import Console

        from model_opt.cli.tables import print_result

        print_result(loaded, Console())


def doctor(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Say what this machine can do, and how to get what it lacks.

    Example: model-opt doctor --json
    """
    from model_opt.cli.checks import checks

    found = checks(device)
    if as_json:
        print(json.dumps([asdict(check) for check in found]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "found", "how to get it", title="what this machine can do")
    for check in found:
        there = Text("yes", "green") if check.there else Text("no", "yellow")
        table.add_row(there, *map(Text, (check.what, check.found, check.advice)))
    Console().print(table)


@contextmanager
def progress(quiet: bool, timeout_s: float | None) -> Iterator["Callbacks"]:
    """A live view in a terminal; lines on standard error elsewhere, and for scripts. Warnings become notes of it."""
    from model_opt.autotuner.callbacks import LineProgress
    from model_opt.cli.progress import LiveProgress

    live = not quiet and sys.stderr.isatty()
    with warnings.catch_warnings(), LiveProgress(timeout_s) if live else LineProgress(timeout_s=timeout_s) as shown:
        warnings.showwarning = lambda message, *_, **__: shown.on_note(str(message))
        yield shown


def pairs(texts: list[str]) -> dict[str, str]:
    """{"decision": "option"} from "decision=option" texts; raises `InvalidInput` for another form."""
    made = {}
    for text in texts:
        name, equals, option = text.partition("=")
        if not equals or not name or not option:
            raise InvalidInput(f"{text!r} is not of the form decision=option")
        made[name.strip()] = option.strip()
    return made


def _dry_run(
    source: "ModelSource",
    shown: "Callbacks",
    frozen: dict[str, str],
    exclude: list[str],
    simulations: int,
    as_json: bool,
) -> None:
    from model_opt.autotuner.preview import preview

    shown.on_phase("baseline", None)
    example = source.arguments.get("example_input")
    seen = preview(source.model, example, freeze=frozen, exclude=exclude, simulations=simulations)
    if as_json:
        print(json.dumps(asdict(seen)))
        return
    for name, options in seen.decisions.items():
        print(f"{name:24} {' | '.join(options)}")
    for line in seen.left_out:
        print(line)
    print(f"{seen.plans:,} plans, those that are not allowed included")
    print(f"about {seen.seconds_each:.0f} s a plan, {seen.seconds_in_all / 60:.0f} min for {simulations}")
