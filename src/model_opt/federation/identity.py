"""Who a deployment is: a root key that names it, and a signing key that the root has certified for one epoch.

The origin *is* the root's public key, so whoever has the name can check the signature, and nobody else can take it. A
signing key is good for one epoch of the outgoing streams: withdrawing the key is refusing that epoch, and what other
keys have signed stays.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from filelock import FileLock

from model_opt.atomic import write_private
from model_opt.errors import StoreError
from model_opt.federation.envelope import check_hex, new_epoch
from model_opt.folders import data_folder

KEY_BYTES, SIGNATURE_BYTES, EPOCH_BYTES = 32, 64, 16
_ROOT, _SIGNING = "root.key", "signing.json"
_CERTIFICATE = b"model_opt certificate 1\n"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The root `origin` says: what this key (32 bytes) signs in this epoch is mine. `signature` is the root's."""

    origin: str
    key: bytes
    epoch: str
    signature: bytes

    @property
    def genuine(self) -> bool:
        """Whether the origin's root has signed it."""
        return signed_by(self.origin, self.signature, _certified(self.origin, self.key, self.epoch))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A deployment's keys. `epoch` is that of its outgoing streams; `earlier` are the epochs of keys rotated away."""

    root: Ed25519PrivateKey = field(repr=False)
    key: Ed25519PrivateKey = field(repr=False)
    certificate: Certificate
    earlier: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """The deployment's name: the root's public key, 64 lower-case hexadecimal digits."""
        return self.certificate.origin

    @property
    def epoch(self) -> str:
        """The epoch that the signing key is certified for."""
        return self.certificate.epoch


def identity_folder() -> Path:
    """Where this user's identity is kept."""
    return data_folder() / "identity"


def deployment_identity(folder: Path | None = None) -> Identity:
    """The identity of this deployment, made on first use; whoever else makes it at the same time gets the same.

    Raises `StoreError` where it cannot be kept, cannot be read, or may be read by other users.
    """
    folder = folder or identity_folder()
    with _kept(folder):
        return _made(folder)


def rotate(folder: Path | None = None) -> Identity:
    """Makes a new signing key for a new epoch and forgets the old one; the origin stays. Raises `StoreError`."""
    folder = folder or identity_folder()
    with _kept(folder):
        before = _made(folder)
        made = _new_key(before.root, (*before.earlier, before.epoch))
        _write_signing(folder, made)
        return made


def signed_by(origin: str, signature: bytes, message: bytes) -> bool:
    """Whether the root key `origin` has signed `message`."""
    try:
        return signed_with(bytes.fromhex(origin), signature, message)
    except ValueError:
        return False


def signed_with(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the ed25519 key with these 32 public bytes has signed `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _certified(origin: str, key: bytes, epoch: str) -> bytes:
    return _CERTIFICATE + b"".join((origin.encode(), key, epoch.encode()))


def _new_key(root: Ed25519PrivateKey, earlier: tuple[str, ...]) -> Identity:
    key, epoch, origin = Ed25519PrivateKey.generate(), new_epoch(), root.public_key().public_bytes_raw().hex()
    public = key.public_key().public_bytes_raw()
    signature = root.sign(_certified(origin, public, epoch))
    certificate = Certificate(origin=origin, key=public, epoch=epoch, signature=signature)
    return Identity(root=root, key=key, certificate=certificate, earlier=earlier)


def _made(folder: Path) -> Identity:
    if not (folder / _SIGNING).exists():
        if not (folder / _ROOT).exists():
            write_private(folder / _ROOT, Ed25519PrivateKey.generate().private_bytes_raw().hex())
        _write_signing(folder, _new_key(_root(folder), ()))
    return _read(folder)


def _read(folder: Path) -> Identity:
    root, path = _root(folder), folder / _SIGNING
    try:
        fields = json.loads(_private(path))
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(fields["key"]))
        certificate = Certificate(
            origin=root.public_key().public_bytes_raw().hex(),
            key=key.public_key().public_bytes_raw(),
            epoch=check_hex("epoch", fields["epoch"], 32),
            signature=bytes.fromhex(fields["certificate"]),
        )
        earlier = tuple(check_hex("epoch", epoch, 32) for epoch in fields["earlier"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: move it away, and another signing key is made") from error
    if not certificate.genuine:
        raise StoreError(f"the signing key in {path} is not certified by the root key beside it")
    return Identity(root=root, key=key, certificate=certificate, earlier=earlier)


def _root(folder: Path) -> Ed25519PrivateKey:
    path = folder / _ROOT
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(_private(path)))
    except ValueError as error:
        raise StoreError(f"{path} is no key: bring a copy back, or move it away to become somebody new") from error


def _write_signing(folder: Path, identity: Identity) -> None:
    fields = {
        "epoch": identity.epoch,
        "key": identity.key.private_bytes_raw().hex(),
        "certificate": identity.certificate.signature.hex(),
        "earlier": list(identity.earlier),
    }
    write_private(folder / _SIGNING, json.dumps(fields))


def _private(path: Path) -> str:
    """The text of a file that nobody else may read."""
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise StoreError(f"other users may read the key {path}: chmod 600 it, and rotate it if they may have")
    return path.read_text()


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Holds the folder, made where it is not there, against other processes."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=10):
            yield
    except OSError as error:
        raise StoreError(f"the deployment's identity cannot be kept at {folder}: {error.strerror or error}") from error
