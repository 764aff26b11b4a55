"""`model-opt`: the command line. Each command is one function; heavy imports wait until one is called."""

import sys
from typing import Annotated

import typer

from model_opt import __version__
from model_opt.cli import analyse, explain, fleet, hub, identity, knowledge, optimize, report, ui
from model_opt.cli.welcome import welcome
from model_opt.errors import ModelOptError

app = typer.Typer(
    name="model-opt",
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Finds the best way to compress a neural network, by measuring on this machine.",
    epilog="Start with: [bold]model-opt optimize my_model.py:make --max-accuracy-drop 2% --output out[/]",
)
app.command("optimize")(optimize.optimize)
app.command("show")(optimize.show)
app.command("explain")(explain.explain)
app.command("report")(report.report)
app.command("ui")(ui.ui)
app.command("analyse")(analyse.analyse)
app.command("doctor")(optimize.doctor)
app.command("search")(fleet.search)
app.command("status")(fleet.status)
app.command("stop")(fleet.stop)
app.command("release")(fleet.release)
app.command("resume")(fleet.resume)
app.command("extend")(fleet.extend)
app.command("list")(fleet.list_)
app.add_typer(knowledge.app, name="knowledge")
app.add_typer(identity.app, name="identity")
app.add_typer(hub.app, name="hub")


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        welcome()


def main() -> None:
    """The entry point: errors of ours are one line on standard error and exit code 2; Ctrl-C is 130."""
    try:
        app()
    except ModelOptError as error:
        print(f"model-opt: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("model-opt: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
