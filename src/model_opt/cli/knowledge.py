"""`model-opt knowledge`: look at what is known, and move it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from model_opt.storage.knowledge import InspectableStore

app = typer.Typer(no_args_is_help=True, help="Look at what earlier runs have measured, and move it.")

Store = Annotated[str | None, typer.Option("--store", help="URL or path of the knowledge base; default: your own.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]


@app.command()
def show(store: Store = None, as_json: Json = False) -> None:
    """List the known architectures, those with most measurements first.

    Example: model-opt knowledge show --store my_kb.json
    """
    from rich.console import Console
    from rich.table import Table

    from model_opt.storage.knowledge import show as known_models

    with _opened(store) as opened:
        models = known_models(opened)
    if as_json:
        print(json.dumps([asdict(model) for model in models], default=str))
        return
    table = Table("family", "parameters", "layers", "plans", "samples", "origins", "signature", title="known models")
    for model in models:
        signature = model.signature
        table.add_row(
            str(signature.family),
            f"{signature.parameters:,}",
            str(signature.layers),
            str(model.plans),
            str(max(model.metrics.values(), default=0)),
            str(len(model.origins)),
            signature.key[:12],
        )
    Console().print(table)


@app.command()
def stats(store: Store = None, as_json: Json = False) -> None:
    """Count records, rows and samples, and name who sent them.

    Example: model-opt knowledge stats
    """
    from model_opt.storage.knowledge import stats as count

    with _opened(store) as opened:
        found = count(opened)
    if as_json:
        print(json.dumps(asdict(found), default=str))
        return
    for name, value in asdict(found.counts).items():
        print(f"{name:12} {value:,}")
    for metric, samples in found.samples.items():
        print(f"samples of {metric}: {samples:,}")
    for origin in found.origins:
        print(f"origin {origin.origin}: {origin.records} records{' (revoked)' if origin.revoked else ''}")
    for stream, gaps in found.gaps.items():
        print(f"missing from {stream}: {gaps}")


@app.command("export")
def export(
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    since: Annotated[int, typer.Option(help="Only what came after this cursor of an earlier export.")] = 0,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Write what is known to a bundle for another deployment.

    Example: model-opt knowledge export --out knowledge.mopt
    """
    from model_opt.storage.transfer import export_bundle

    with _opened(store) as opened:
        _tell(export_bundle(opened, out, since=since), as_json)


@app.command("import")
def import_(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `export` wrote.")],
    dry_run: DryRun = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Take in a bundle; what is there already changes nothing.

    Example: model-opt knowledge import knowledge.mopt --dry-run
    """
    from model_opt.storage.transfer import import_bundle

    with _opened(store) as opened:
        _tell(import_bundle(opened, bundle, dry_run=dry_run), as_json)


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="URL or path to read.")],
    target: Annotated[str, typer.Argument(help="URL or path to write.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy everything from one store to another.

    Example: model-opt knowledge copy my_kb.json neo4j://neo4j:password@127.0.0.1:7687
    """
    from model_opt.storage.transfer import copy_store

    with _opened(source) as read, _opened(target) as written:
        _tell(copy_store(read, written, dry_run=dry_run), as_json)


@app.command("rebuild-index")
def rebuild_index(store: Store = None, as_json: Json = False) -> None:
    """Make the index of signatures anew from the store.

    Example: model-opt knowledge rebuild-index --store 'sqlite:///kb.db?chroma=index'
    """
    from model_opt.storage.transfer import rebuild_index as rebuild

    with _opened(store) as opened:
        count = rebuild(opened)
    print(json.dumps({"signatures": count}) if as_json else f"{count} signatures indexed")


@app.command()
def revoke(
    origin: Annotated[str, typer.Argument(help="The origin whose measurements are withdrawn.")],
    reason: Annotated[str, typer.Option(help="Why; travels with the revocation.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Withdraw what an origin has said; it stays withdrawn, wherever it comes from.

    Example: model-opt knowledge revoke 3f9c… --reason "wrong clock"
    """
    from model_opt.storage.transfer import revoke_origin

    with _opened(store) as opened:
        _tell(revoke_origin(opened, origin, reason=reason), as_json)


def _tell(outcome: Any, as_json: bool) -> None:
    fields = asdict(outcome)
    if as_json:
        print(json.dumps(fields, default=str))
        return
    for name, value in fields.items():
        print(f"{name.replace('_', ' '):12} {value}")


@contextmanager
def _opened(store: str | None) -> Iterator["InspectableStore"]:
    from model_opt.storage.open import default_store_path, open_store

    opened = open_store(store or default_store_path())
    try:
        yield cast("InspectableStore", opened)
    finally:
        opened.close()
