"""`model-opt knowledge`: look at what is known, and move it."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from model_opt.cli.sharing import as_lines as _lines
from model_opt.cli.sharing import print_leaving, print_taken, touched_by

if TYPE_CHECKING:
    from model_opt.federation.known import InspectableStore

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

    from model_opt.federation.known import show as known_models

    with opened_store(store, may_be_new=False) as opened:
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
    from model_opt.federation.known import stats as count
    from model_opt.federation.last_heard import last_heard

    with opened_store(store, may_be_new=False) as opened:
        found = count(opened)
    if as_json:
        print(json.dumps(asdict(found), default=str))
        return
    for name, value in asdict(found.counts).items():
        print(f"{name:12} {value:,}")
    for metric, samples in found.samples.items():
        print(f"samples of {metric}: {samples:,}")
    last: dict[str, float] = {}
    for (name, _), seconds in last_heard().items():
        last[name] = max(seconds, last.get(name, seconds))
    for origin in found.origins:
        heard = f", last heard {datetime.fromtimestamp(last[origin.origin]):%Y-%m-%d}" if origin.origin in last else ""
        print(f"origin {origin.origin}: {origin.records} records{heard}{' (revoked)' if origin.revoked else ''}")
    for stream, gaps in found.gaps.items():
        print(f"missing from {stream}: {gaps}")


@app.command("export")
def export(
    out: Annotated[Path | None, typer.Option(help="The bundle to write.")] = None,
    since: Annotated[str, typer.Option(help="Only what came after this cursor of an earlier export.")] = "0.0",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every field that would leave; write nothing.")
    ] = False,
    least_plans: Annotated[int, typer.Option(help="Architectures with fewer measured plans stay.")] = 3,
    least_samples: Annotated[int, typer.Option(help="Metrics of fewer samples stay.")] = 1,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Write what is known to a bundle for other deployments, coarse and signed.

    Example: model-opt knowledge export --out knowledge.mopt
    """
    from model_opt.errors import InvalidInput
    from model_opt.exchange.shared import export_bundle, preview
    from model_opt.federation.export_policy import ExportPolicy

    rules = ExportPolicy(least_plans=least_plans, least_samples=least_samples)
    with opened_store(store, may_be_new=False) as opened:
        if dry_run:
            print_leaving(preview(opened, since=since, rules=rules), as_json)
        elif out is None:
            raise InvalidInput("say where to: --out FILE, or --dry-run to see what would leave")
        elif not out.absolute().parent.is_dir():
            raise InvalidInput(f"there is no folder {str(out.parent)!r} to write {out.name!r} to")
        else:
            _tell(export_bundle(opened, out, since=since, rules=rules), as_json)


@app.command("import")
def import_(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `export` wrote.", exists=True, dir_okay=False)],
    dry_run: DryRun = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Take in what trusted deployments have signed; what is there already changes nothing.

    Example: model-opt knowledge import knowledge.mopt --dry-run
    """
    from model_opt.exchange.shared import import_bundle

    with opened_store(store) as opened:
        print_taken(import_bundle(opened, bundle, dry_run=dry_run), as_json)


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
    from model_opt.storage.copy_store import copy_store

    with opened_store(source, may_be_new=False) as read, opened_store(target) as written:
        _tell(copy_store(read, written, dry_run=dry_run), as_json)


@app.command("rebuild-index")
def rebuild_index(store: Store = None, as_json: Json = False) -> None:
    """Make the index of signatures anew from the store.

    Example: model-opt knowledge rebuild-index --store 'sqlite:///kb.db?chroma=index'
    """
    from model_opt.storage.copy_store import rebuild_index as rebuild

    with opened_store(store, may_be_new=False) as opened:
        count = rebuild(opened)
    print(json.dumps({"signatures": count}) if as_json else f"{count} signatures indexed")


@app.command()
def revoke(
    origin: Annotated[str, typer.Argument(help="The origin whose measurements are withdrawn.")],
    reason: Annotated[str, typer.Option(help="Why; travels with the revocation.")],
    results: Annotated[list[Path] | None, typer.Option(help="Folders in which to look for results; default: .")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Withdraw what an origin has said; it stays withdrawn, wherever it comes from. Lists the results it touched.

    Example: model-opt knowledge revoke 3f9c… --reason "wrong clock" --results runs
    """
    from model_opt.exchange.shared import withdraw

    with opened_store(store, may_be_new=False) as opened:
        known = any(summary.origin == origin for summary in opened.origins())
        before, after = withdraw(opened, origin, reason=reason)
    if not known:
        print(f"model-opt: nothing of {origin!r} is here yet; it is refused from now on", file=sys.stderr)
    touched = [str(path) for folder in results or [Path()] for path in touched_by(origin, folder)]
    found = {"origin": origin, "known": known, "rows_before": before, "rows_after": after, "results": touched}
    print(json.dumps(found) if as_json else _lines(found))


def _tell(outcome: Any, as_json: bool) -> None:
    fields = asdict(outcome)
    print(json.dumps(fields, default=str) if as_json else _lines(fields))


@contextmanager
def opened_store(store: str | None, *, may_be_new: bool = True) -> Iterator["InspectableStore"]:
    """The store that `store` names, by default the user's own; closed at the end.

    Raises `InvalidInput` for the name of a file that is not there, unless it `may_be_new`.
    """
    from model_opt.errors import InvalidInput
    from model_opt.storage.open import default_store_path, open_store

    opened = open_store(store or default_store_path())
    path = getattr(getattr(opened, "store", opened), "path", None)
    if store and not may_be_new and isinstance(path, Path) and not path.exists():
        raise InvalidInput(f"there is no knowledge base {str(path)!r}")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"model-opt: {message}", file=sys.stderr)
        try:
            yield cast("InspectableStore", opened)
        finally:
            opened.close()
