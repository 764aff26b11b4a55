"""`model-opt report`: a search as a page to look at."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    result: Annotated[str, typer.Argument(help="A result folder, its result.json, or the name of a fleet's search.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    state: Annotated[str | None, typer.Option(help="Folder of this node that fleets' searches are kept in.")] = None,
) -> None:
    """Write one HTML file with everything that a search has found; it needs no network and no server.

    Example: model-opt report out -o report.html
    """
    from model_opt.report.page import write_report
    from model_opt.report.view import find

    write_report(find(result, state), output)
    print(f"the report is in {output}: open it in a browser")
