"""Nonces that a hub hands out: each is good for one signed request. No clock but the hub's own is involved.

A nonce is a time, random bits, and a code over both under a secret that dies with the process: handing them out costs
no memory, and one from before a restart is worth nothing. Only those that a genuine signature has used are remembered.
"""

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

_CODE = 16


class Nonces:
    """Issues and spends nonces. Not for several threads."""

    def __init__(self, life_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is in seconds, and never goes back."""
        self._life_s, self._clock = life_s, clock
        self._secret = secrets.token_bytes(32)
        self._spent: OrderedDict[str, float] = OrderedDict()

    def issue(self) -> str:
        """A new nonce, 64 hexadecimal digits."""
        raw = int(self._clock() * 1e6).to_bytes(8, "big") + secrets.token_bytes(8)
        return (raw + self._code(raw)).hex()

    def fresh(self, nonce: str) -> bool:
        """Whether it was issued here not long ago, and has not been spent."""
        try:
            raw = bytes.fromhex(nonce)
        except ValueError:
            return False
        if len(raw) != 16 + _CODE or raw.hex() != nonce or not hmac.compare_digest(raw[16:], self._code(raw[:16])):
            return False
        age_s = self._clock() - int.from_bytes(raw[:8], "big") / 1e6
        return age_s <= self._life_s and nonce not in self._spent

    def spend(self, nonce: str) -> None:
        """Makes a fresh nonce worthless; what is too old to matter is forgotten."""
        now = self._clock()
        self._spent[nonce] = now
        while self._spent and next(iter(self._spent.values())) < now - self._life_s - 1:
            self._spent.popitem(last=False)

    def _code(self, raw: bytes) -> bytes:
        return hmac.digest(self._secret, raw, "sha256")[:_CODE]
