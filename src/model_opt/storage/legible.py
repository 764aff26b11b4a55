"""What a store holds and nobody can understand is corrupt: told as that, whatever the parser says."""

from collections.abc import Iterator
from contextlib import contextmanager

from model_opt.errors import ModelOptError, StoreCorrupt, WireError


@contextmanager
def legible(what: object) -> Iterator[None]:
    """Raises `StoreCorrupt` about `what` where something that is read inside cannot be parsed. Only for reading."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, ModelOptError) and not isinstance(error, WireError):
            raise
        raise StoreCorrupt(
            f"{what} holds something that cannot be read ({type(error).__name__}: {error}); it was left as it is: "
            "bring a copy back, or move it away to begin anew"
        ) from error


_UNREADABLE = (WireError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
