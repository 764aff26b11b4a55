"""How a request says who makes it: one header, signed with the deployment's signing key.

    Authorization: ModelOpt origin=…, audience=…, nonce=…, body=…, mark=…

`mark` (see `signing.sign_request`) is over method, target, audience, nonce and body, one a line. The audience is the
hub's address as the client has it, so that one hub cannot pass a request on to another; `body` is the blake2b-256 of
the body, so that a signature is checked before the body is read.
"""

import hashlib
import re
from dataclasses import dataclass

from model_opt.errors import WireError
from model_opt.federation.identity import Identity
from model_opt.federation.signing import request_epoch, sign_request

SCHEME = "ModelOpt"
NONCE_HEADER = "Replay-Nonce"
_FIELDS = re.compile(
    r"ModelOpt origin=(?P<origin>[0-9a-f]{64}), audience=(?P<audience>[!-+\--~]{1,300}), "
    r"nonce=(?P<nonce>[0-9a-f]{64}), body=(?P<body>[0-9a-f]{64}), mark=(?P<mark>[0-9a-f]{354})"
)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What the header says; nothing of it is checked yet. All but the audience are hexadecimal digits."""

    origin: str
    audience: str
    nonce: str
    body: str
    mark: str

    def epoch(self, method: str, target: str) -> str:
        """The epoch of the key that has signed this request; raises `WireError` where it is forged."""
        return request_epoch(self.origin, bytes.fromhex(self.mark), _text(method, target, self))


def read(header: str | None) -> Credentials:
    """The credentials in an `Authorization` header; raises `WireError` where there are none."""
    found = _FIELDS.fullmatch(header or "")
    if not found:
        raise WireError("the request is not signed")
    return Credentials(**found.groupdict())


def written(identity: Identity, *, method: str, target: str, audience: str, nonce: str, body: bytes) -> str:
    """The header for a request. `target` is the path with its query, as it is sent."""
    fields = {"origin": identity.origin, "audience": audience, "nonce": nonce, "body": body_hash(body)}
    bare = Credentials(**fields, mark="")
    mark = sign_request(identity, _text(method, target, bare)).hex()
    return f"{SCHEME} " + ", ".join(f"{name}={value}" for name, value in (fields | {"mark": mark}).items())


def body_hash(body: bytes) -> str:
    """blake2b-256, 64 hexadecimal digits."""
    return hashlib.blake2b(body, digest_size=32).hexdigest()


def _text(method: str, target: str, said: Credentials) -> bytes:
    return "\n".join((method, target, said.audience, said.nonce, said.body)).encode()
