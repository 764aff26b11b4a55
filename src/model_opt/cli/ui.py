"""`model-opt ui`: a live page of searches and knowledge."""

from pathlib import Path
from typing import Annotated

import typer


def ui(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Where result folders lie, two levels deep; default: here.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="URL or path of the knowledge base; default: your own.")] = None,
    state: Annotated[str | None, typer.Option(help="Folder of this node that fleets' searches are kept in.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8377,
    token: Annotated[
        str | None, typer.Option(envvar="MODEL_OPT_UI_TOKEN", help="Asked of every visitor; made up beyond loopback.")
    ] = None,
) -> None:
    """Serve a page of running and past searches, and of what is known. It changes nothing. End it with Ctrl-C.

    Examples:
      model-opt ui

      model-opt ui out experiments --store my_kb.json --port 0

    """
    import secrets

    from model_opt.report.live import is_loopback, serve_live
    from model_opt.report.watching import Watching
    from model_opt.storage.open import default_store_path

    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    watching = Watching(folders or [Path()], state, store or default_store_path())
    serve_live(watching, host=host, port=port, token=token, on_ready=_say)


def _say(address: str) -> None:
    print(f"open {address} (Ctrl-C ends it)", flush=True)
