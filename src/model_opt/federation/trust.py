"""Whom a deployment listens to, and how far: a file beside its keys. It is the reader's own and never shared."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from model_opt.atomic import write_private
from model_opt.errors import StoreError
from model_opt.federation.envelope import check_hex
from model_opt.federation.identity import identity_folder
from model_opt.federation.similarities import checked_share

_FILE = "trust.json"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another deployment: how far it is trusted (0 to 1), what it is called here, and why.

    An `authority` is one whose withdrawals of others' records are followed.
    """

    trust: float
    name: str = ""
    note: str = ""
    authority: bool = False


def peers(folder: Path | None = None) -> dict[str, Peer]:
    """Everybody that was named, by origin. Raises `StoreError` where the file cannot be read."""
    path = (folder or identity_folder()) / _FILE
    try:
        fields = json.loads(path.read_text()) if path.exists() else {}
        return {check_hex("origin", origin, 64): _peer(peer) for origin, peer in sorted(fields.items())}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def trust(
    origin: str,
    share: float,
    *,
    name: str = "",
    note: str = "",
    authority: bool | None = None,
    folder: Path | None = None,
) -> Peer:
    """Sets how far `origin` is trusted.

    Parameters
    ----------
    origin
        A deployment's name: 64 hexadecimal digits.
    share
        Within 0 and 1; 0 means not at all.
    name
        What people call it; it stays until another is given.
    note
        Why.
    authority
        Whether its withdrawals of others' records are followed, too; None leaves that as it is.
    folder
        The identity's; None for the user's own.

    Returns
    -------
    Peer
        What is known of it now.

    Raises
    ------
    InvalidInput
        For no origin, or no share.
    StoreError
        Where it cannot be kept.
    """
    check_hex("origin", origin, 64)
    share = checked_share("trust", share)
    folder = folder or identity_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / ".trust.lock", timeout=10):
            known = peers(folder)
            before = known.get(origin, Peer(trust=share))
            known[origin] = Peer(
                trust=share,
                name=name or before.name,
                note=note,
                authority=before.authority if authority is None else authority,
            )
            fields = {origin: asdict(peer) for origin, peer in sorted(known.items())}
            write_private(folder / _FILE, json.dumps(fields, indent=1))
    except OSError as error:
        raise StoreError(f"trust cannot be kept at {folder}: {error.strerror or error}") from error
    return known[origin]


def quarantine(origin: str, reason: str, *, folder: Path | None = None) -> Peer:
    """Trusts `origin` no more: its records stay, and are not read. `trust` ends it."""
    return trust(origin, 0.0, note=f"quarantined: {reason}", folder=folder)


def trusted(own: str, folder: Path | None = None) -> frozenset[str]:
    """The origins whose signed records are taken: those with trust above 0, and `own`."""
    return frozenset({own, *(origin for origin, peer in peers(folder).items() if peer.trust > 0)})


def authorities(own: str, folder: Path | None = None) -> frozenset[str]:
    """Whose withdrawals of others' records are followed: `own`, and the trusted peers that are authorities."""
    return frozenset({own, *(origin for origin, peer in peers(folder).items() if peer.authority and peer.trust > 0)})


def shares(own: str, folder: Path | None = None) -> Mapping[str, float]:
    """Trust by origin, as `merge_origins` takes it; `own` is 1."""
    return {origin: peer.trust for origin, peer in peers(folder).items()} | {own: 1.0}


def _peer(fields: Mapping[str, object]) -> Peer:
    share, name, note = fields["trust"], fields.get("name", ""), fields.get("note", "")
    if not isinstance(share, int | float):
        raise TypeError(f"trust {share!r} is no number")
    authority = fields.get("authority", False) is True
    return Peer(trust=checked_share("trust", share), name=str(name), note=str(note), authority=authority)
