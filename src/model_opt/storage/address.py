"""Where a store is: its URL in parts, what may be shown of it, and what its driver makes of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import ParseResult, urlencode, urlparse

from model_opt.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Address:
    """A store's URL in parts; the password is in no `repr` of it."""

    parts: ParseResult
    options: Mapping[str, str]
    federation: str

    def __repr__(self) -> str:
        return f"Address({redacted(self.parts.geturl())!r})"

    def driver_url(self) -> str:
        """The URL as its driver wants it: with the options that are not ours, and with the password."""
        return self.parts._replace(query=urlencode(self.options)).geturl()


@contextmanager
def understood(store: str, *errors: type[Exception]) -> Iterator[None]:
    """Raises `InvalidInput` where a driver does not understand an address or option; says nothing of its values.

    `errors` are the driver's own for that, beside `TypeError` and `ValueError`.
    """
    try:
        yield
    except TypeError as error:
        raise InvalidInput(f"{store}: its driver does not know an option: {str(error).rpartition(' ')[2]}") from None
    except Exception as error:
        if not isinstance(error, (ValueError, *errors)):
            raise
        raise InvalidInput(
            f"{store}: its driver cannot read the address or the value of an option, or finds no such name"
        ) from None


def redacted(url: str) -> str:
    """`url` with its password replaced by `***`, and without its query."""
    parts = urlparse(url)
    user, separator, host = parts.netloc.rpartition("@")
    if separator:
        user = f"{user.partition(':')[0]}:***" if ":" in user else user
    return parts._replace(netloc=f"{user}{separator}{host}", query="").geturl()
