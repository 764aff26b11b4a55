"""What `model-opt` alone says: what this machine can do, and the next step."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from model_opt.cli.checks import Check

_EXAMPLE = Path("examples/my_model.py")
_FIRST = (
    f"model-opt optimize {_EXAMPLE}:make --max-accuracy-drop 2% --output out",
    "a first result: a small network, trained on digits first",
)
_STEPS = (
    (
        "model-opt optimize my_model.py:make --max-accuracy-drop 2% --output out",
        "your own: make() returns your trained torch.nn.Module, or a mapping with `model` and its data",
    ),
    ("model-opt optimize my_model.py:make --dry-run", "the decisions, and what they would cost"),
)
_LATER = (
    ("model-opt report {result} -o report.html", "everything that was found, as a page to look at"),
    ("model-opt ui", "watch searches while they run, and what is known"),
    ("model-opt search my_model.py:make --workers 2", "the same with several workers; --address for a cluster"),
    ("model-opt knowledge show", "what earlier runs have measured"),
)


def welcome() -> None:
    """Prints it."""
    from rich.console import Console
    from rich.markup import escape

    from model_opt import __version__
    from model_opt.autotuner.folder import folders
    from model_opt.cli.checks import checks

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]model_opt {__version__}[/]: finds the best way to compress a neural network, by measuring.\n")
    found = checks("cpu")
    console.print("[bold]Here[/]")
    for check in found[:3]:
        console.print(f"  {_mark(check)} {escape(check.what)}: {escape(check.found or 'yes')}")
    there = [check.what for check in found[3:] if check.there]
    console.print(f"  [green]✓[/] {', '.join(there) or 'plain torch'}")
    for check in found[3:]:
        if not check.there:
            console.print(f"  {_mark(check)} {check.what} ({check.found}): {escape(check.advice)}")
    results = folders([Path()])
    console.print("\n[bold]Start[/]")
    _steps(console, (_FIRST, *_STEPS) if _EXAMPLE.is_file() else _STEPS)
    console.print("\n[bold]Then[/]")
    _steps(console, [(line.format(result=results[0] if results else "out"), why) for line, why in _LATER])
    console.print("\nmodel-opt COMMAND --help has examples; model-opt --help lists all commands.")


def _mark(check: "Check") -> str:
    return "[green]✓[/]" if check.there else "[yellow]–[/]"


def _steps(console: "Console", steps: Iterable[tuple[str, str]]) -> None:
    from rich.markup import escape

    for line, why in steps:
        console.print(f"  {escape(line)}\n      [dim]{why}[/]")
