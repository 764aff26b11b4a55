"""What a store holds and nobody can understand is corrupt: told as that, whatever the parser says."""

from collections.abc import Iterator
from contextlib import contextmanager

from model_opt.errors import ModelOptError, StoreCorrupt


@contextmanager
def legible(what: object) -> Iterator[None]:
    """Raises `StoreCorrupt` about `what` where something that is read inside cannot be parsed. Only for reading."""
    try:
        yield
    except ModelOptError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise StoreCorrupt(
            f"{what} holds something that cannot be read ({type(error).__name__}: {error}); it was left as it is"
        ) from error
