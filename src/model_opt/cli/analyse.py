"""`model-opt analyse`: which layers cost accuracy under which technique."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from model_opt.compression.evaluation.sensitivity import Sensitivity

Model = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME or path/to/file.py:factory.")]


def analyse(
    model: Model,
    top: Annotated[int, typer.Option(min=1, help="How many layers to show of each technique.")] = 12,
    weights: Annotated[str | None, typer.Option(help="Weights of torchvision or timm (may download).")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of torchvision and timm models.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")] = None,
    seed: Annotated[int, typer.Option(help="For the noise that stands in for missing data.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show which layers cost accuracy under int8, low rank and pruning, the most harmful first.

    Each layer (for pruning each stage) is changed alone, on held-out rows of the calibration data.

    Example: model-opt analyse torchvision:mobilenet_v3_small --top 5
    """
    from model_opt.cli.optimize import loaded, progress

    with progress(as_json, None) as shown:
        source = loaded(model, shown, weights=weights, batch=batch, threads=threads)
        from model_opt.autotuner.preview import sensitivities_of

        if not {"calibration_data", "train_data"} & source.arguments.keys():
            shown.on_note("no calibration_data: layers are judged on random noise")
        shown.on_phase("sensitivity", None)
        found = sensitivities_of(source, seed=seed)
    if as_json:
        print(json.dumps({"layers": [asdict(each) for each in found]}))
        return
    _show(found, top)


def _show(found: "list[Sensitivity]", top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for technique in dict.fromkeys(each.technique for each in found):
        rows = [each for each in found if each.technique == technique]
        table = Table(title=f"{technique}: the {min(top, len(rows))} most harmful of {len(rows)}")
        for heading in ("where", "weights", "signal to noise", "changed"):
            table.add_column(heading, justify="left" if heading == "where" else "right", overflow="fold")
        for each in rows[:top]:
            table.add_row(Text(each.where), f"{each.parameters:,}", f"{each.sqnr_db:.1f} dB", f"{each.changed:.1%}")
        console.print(table)
    console.print(
        "changed: outputs whose first class is another; for models that are no classifiers the relative error"
    )
