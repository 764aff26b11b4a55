"""`model-opt hub`: share knowledge with other deployments through a service, or run that service."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model_opt.cli.knowledge import opened_store
from model_opt.cli.sharing import as_lines, print_taken

if TYPE_CHECKING:
    from model_opt.exchange.intake import Taken
    from model_opt.hub.client import HubClient
    from model_opt.hub.sync import Deployment, PushOutcome

app = typer.Typer(no_args_is_help=True, help="Share knowledge with other deployments through a hub, or run one.")

Url = Annotated[str, typer.Argument(help="The hub's address: https://hub.example:8470.")]
Store = Annotated[str | None, typer.Option("--store", help="URL or path of the knowledge base; default: your own.")]
Ca = Annotated[Path | None, typer.Option(help="Certificates (PEM) to trust beside the system's.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
State = Annotated[Path | None, typer.Option(help="The hub's folder; default: in your data folder.")]
Federation = Annotated[str, typer.Option(help="The federation's name.")]


@app.command()
def serve(
    federation: Annotated[list[str] | None, typer.Option(help="Federations to serve; default: local.")] = None,
    state: State = None,
    store: Annotated[
        str | None, typer.Option(help="URL of the hub's own store; default: SQLite in its folder.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8470,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    url: Annotated[str | None, typer.Option(help="How clients know this hub, where that is another address.")] = None,
    max_body_mb: Annotated[float, typer.Option(help="Largest push, in MiB.")] = 8.0,
    max_record_mb: Annotated[float, typer.Option(help="Largest record, in MiB.")] = 2.0,
    rate: Annotated[float, typer.Option(help="Requests a second of one deployment.")] = 20.0,
) -> None:
    """Run a hub until it is ended. Who may use it: `model-opt hub allow`.

    Example: model-opt hub serve --host 0.0.0.0 --url https://hub.example:8470 --tls-cert hub.pem --tls-key hub.key
    """
    from model_opt.hub.limits import HubLimits
    from model_opt.hub.serve import HubSettings
    from model_opt.hub.serve import serve as run

    body, record = int(max_body_mb * 2**20), int(max_record_mb * 2**20)
    run(
        HubSettings(
            state=state or _state(),
            federations=tuple(federation or ["local"]),
            store=store,
            host=host,
            port=port,
            certificate=tls_cert,
            key=tls_key,
            url=url,
            limits=HubLimits(max_body_bytes=body, max_record_bytes=min(record, body - 4), requests_per_s=rate),
        )
    )


@app.command()
def allow(
    origin: Annotated[str, typer.Argument(help="The deployment's name, as its `identity show` prints it.")],
    name: Annotated[str, typer.Option(help="What to call it here.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Take it off the list.")] = False,
    authority: Annotated[bool, typer.Option("--authority", help="Follow its withdrawals of others' records.")] = False,
    federation: Federation = "local",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Let ORIGIN use the hub. A running hub notices at once. Ends a quarantine, too.

    Example: model-opt hub allow 3f9c… --name "the vision team"
    """
    from model_opt.federation.trust import trust
    from model_opt.hub.serve import members_folder

    folder = members_folder(state or _state(), federation)
    peer = trust(origin, 0.0 if remove else 1.0, name=name, authority=authority, folder=folder)
    fields = {"origin": origin, "allowed": peer.trust > 0, "name": peer.name, "authority": peer.authority}
    print(json.dumps(fields) if as_json else as_lines(fields))


@app.command()
def members(federation: Federation = "local", state: State = None, as_json: Json = False) -> None:
    """List who may use the hub, and who is in quarantine.

    Example: model-opt hub members
    """
    from model_opt.federation.trust import peers
    from model_opt.hub.serve import members_folder

    known = peers(members_folder(state or _state(), federation))
    if as_json:
        print(json.dumps({origin: asdict(peer) for origin, peer in known.items()}))
        return
    for origin, peer in known.items():
        print(f"{'allowed' if peer.trust > 0 else 'refused'}  {origin} {peer.name} {peer.note}".rstrip())


@app.command()
def push(url: Url, store: Store = None, ca: Ca = None, as_json: Json = False) -> None:
    """Tell the hub what was measured here and what others have signed. What would leave: `knowledge export --dry-run`.

    Example: model-opt hub push https://hub.example:8470
    """
    from model_opt.hub.sync import push as send

    with _sides(url, store, ca) as (here, hub):
        outcome = send(here, hub)
    print(json.dumps(asdict(outcome))) if as_json else _print_pushed(outcome)


@app.command()
def pull(url: Url, store: Store = None, ca: Ca = None, as_json: Json = False) -> None:
    """Take in what trusted deployments have told the hub, from where the last pull ended.

    Example: model-opt hub pull https://hub.example:8470
    """
    from model_opt.hub.sync import pull as fetch

    with _sides(url, store, ca) as (here, hub):
        print_taken(fetch(here, hub, url), as_json)


@app.command()
def sync(
    url: Url,
    every: Annotated[float | None, typer.Option(help="Seconds from one time to the next; default: once.")] = None,
    store: Store = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Push and pull, once or again and again; a hub that is away is waited for.

    Example: model-opt hub sync https://hub.example:8470 --every 60
    """
    from model_opt.errors import InvalidInput
    from model_opt.hub.sync import sync as exchange

    if every is not None and every < 1:
        raise InvalidInput("--every is at least 1 second")

    def tell(pushed: "PushOutcome", taken: "Taken") -> None:
        if as_json:
            print(json.dumps({"pushed": asdict(pushed), "pulled": asdict(taken)}), flush=True)
        else:
            _print_pushed(pushed)
            print_taken(taken, as_json=False)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _sides(url, store, ca) as (here, hub):
        exchange(here, hub, url, every_s=every, tell=tell)


@app.command()
def status(url: Url, store: Store = None, ca: Ca = None, as_json: Json = False) -> None:
    """Print what the hub has: records, origins, limits.

    Example: model-opt hub status https://hub.example:8470
    """
    with _sides(url, store, ca) as (_, hub):
        found = hub.status()
    fields = {
        "hub": found.hub,
        "records": found.records,
        "cursor": found.cursor,
        "withdrawals": len(found.laws),
        "streams": {"/".join(stream): at for stream, at in sorted(found.streams.items())},
    }
    print(json.dumps(fields) if as_json else as_lines(fields))


def _print_pushed(outcome: "PushOutcome") -> None:
    print(as_lines({"sent": outcome.sent, "new there": outcome.new, "known there": outcome.known}))
    for reason, count in outcome.refused.items():
        print(f"refused      {count} records: {reason}")
    for reason, count in outcome.held_back.items():
        print(f"stays        {count} rows: {reason}")
    for stream in outcome.missing:
        print(f"missing      something of {stream}, which is not here either")


def _state() -> Path:
    from model_opt.folders import data_folder

    return data_folder() / "hub"


@contextmanager
def _sides(url: str, store: str | None, ca: Path | None) -> Iterator[tuple["Deployment", "HubClient"]]:
    from model_opt.federation.identity import deployment_identity
    from model_opt.hub.client import HubClient
    from model_opt.hub.sync import Deployment

    identity = deployment_identity()
    with opened_store(store) as opened, HubClient(url, identity, federation=opened.federation, authority=ca) as hub:
        yield Deployment(store=opened, identity=identity), hub
