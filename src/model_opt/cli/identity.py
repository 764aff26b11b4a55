"""`model-opt identity`: who this deployment is, and whom it trusts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from model_opt.federation.identity import Identity

app = typer.Typer(no_args_is_help=True, help="Who this deployment is to others, and whom it trusts.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


@app.command()
def create(as_json: Json = False) -> None:
    """Make this deployment's keys, unless it has them, and print its name.

    Example: model-opt identity create
    """
    from model_opt.federation.identity import deployment_identity

    _tell(_described(deployment_identity()), as_json)


@app.command()
def show(as_json: Json = False) -> None:
    """Print this deployment's name and epochs, and who is trusted how far.

    Example: model-opt identity show --json
    """
    from model_opt.federation.identity import deployment_identity
    from model_opt.federation.trust import peers

    known = {origin: asdict(peer) for origin, peer in peers().items()}
    described = _described(deployment_identity())
    if as_json:
        _tell(described | {"peers": known}, as_json)
        return
    _tell(described, as_json)
    for origin, peer in known.items():
        print(f"trust {peer['trust']:<6} {origin} {peer['name']} {peer['note']}".rstrip())


@app.command()
def trust(
    origin: Annotated[str, typer.Argument(help="Its name, as its `identity show` prints it: 64 digits.")],
    share: Annotated[float, typer.Argument(help="How far: 0 (not at all) to 1 (as oneself).")] = 1.0,
    name: Annotated[str, typer.Option(help="What to call it here.")] = "",
    authority: Annotated[
        bool | None, typer.Option("--authority/--no-authority", help="Follow its withdrawals of others' records too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take records that ORIGIN has signed, and count them SHARE; 0 ends it.

    Example: model-opt identity trust 3f9c… 0.5 --name "the vision team"
    """
    from model_opt.federation.trust import trust as keep

    _tell({"origin": origin, **asdict(keep(origin, share, name=name, authority=authority))}, as_json)


@app.command()
def rotate(as_json: Json = False) -> None:
    """Make a new signing key, for a new epoch. The name stays, and what was signed stays good.

    Example: model-opt identity rotate
    """
    from model_opt.federation.identity import rotate as renew

    _tell(_described(renew()), as_json)


@app.command()
def revoke(
    reason: Annotated[str, typer.Option(help="Why; travels with the revocation.")],
    out: Annotated[Path, typer.Option(help="The bundle to write, for every store and every peer to import.")],
    epoch: Annotated[str | None, typer.Option(help="The epoch of the key; default: the present one.")] = None,
    first: Annotated[int, typer.Option(help="The first envelope refused: all before it were yours.")] = 1,
    everything: Annotated[bool, typer.Option("--everything", help="Withdraw all you have ever said.")] = False,
    federation: Annotated[str, typer.Option(help="Where it was said.")] = "local",
    as_json: Json = False,
) -> None:
    """Withdraw a signing key that others may have: what it signed is refused. The present key is rotated.

    Example: model-opt identity revoke --reason "a stolen laptop" --out withdrawn.mopt
    """
    from model_opt.exchange.bundle import write_bundle
    from model_opt.exchange.outgoing import Outgoing
    from model_opt.federation.envelope import Revocation
    from model_opt.federation.identity import deployment_identity
    from model_opt.federation.identity import rotate as renew
    from model_opt.federation.signing import sign

    identity = deployment_identity()
    withdrawn = epoch or identity.epoch
    record = Revocation(
        federation=federation,
        origin=identity.origin,
        authority=identity.origin,
        reason=reason,
        epochs={} if everything else {withdrawn: first},
    )
    signed = sign(identity, record)
    Outgoing(identity, federation).keep(signed)
    write_bundle(out, [signed])
    rotated = everything or withdrawn == identity.epoch
    if rotated:
        renew()
    told = {"origin": identity.origin, "withdrawn": "everything" if everything else withdrawn}
    _tell(told | {"rotated": rotated, "bundle": str(out), "next": f"model-opt knowledge import {out}"}, as_json)


def _described(identity: "Identity") -> dict[str, object]:
    from model_opt.federation.identity import identity_folder

    folder = str(identity_folder())
    return {
        "origin": identity.origin,
        "epoch": identity.epoch,
        "earlier_epochs": list(identity.earlier),
        "folder": folder,
    }


def _tell(fields: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(fields))
        return
    for name, value in fields.items():
        print(f"{name.replace('_', ' '):15} {', '.join(value) or 'none' if isinstance(value, list) else value}")
