"""What a search is made of, as files in its state folder: it must outlive the driver that submitted it."""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cloudpickle

from model_opt.atomic import replacing, write_atomically
from model_opt.errors import FleetError, InvalidInput
from model_opt.federation.envelope import check_name
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.proposer import Search
from model_opt.folders import state_folder
from model_opt.measuring.deadlines import Deadlines
from model_opt.search.evaluator import Evaluator
from model_opt.search.model_signature import ModelSignature

CHUNK_BYTES = 8 << 20
FACTORY, REQUEST, MANIFEST = "factory.pickle", "request.pickle", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where workers run. `workers` is their number, None: one for every slot that there is and will be.

    A slot has `gpus` (a fraction shares a device) and `cpus` of a node that has all `labels`. Where the cluster has
    no GPU and `gpus` is None, slots are counted in CPUs. `env` is set in the measuring processes. With `search_labels`
    only measuring takes place in the slots: planning does on nodes that have those labels.
    """

    workers: int | None = None
    gpus: float | None = None
    cpus: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)
    search_labels: Mapping[str, str] | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Where merged rows are flushed: a store's URL or path, as whom, and the signature that the rows are of.

    `metrics` are those that are stored, None: all. `store` may hold a password.
    """

    store: str = field(repr=False)
    signature: ModelSignature
    federation: str = "local"
    origin: str = "local"
    metrics: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A search as it was submitted, apart from the evaluator's factory. `subject` tells what is searched for apart, a
    model for example, where a factory's pickle may differ from one process to the next; else the pickle does."""

    search: Search
    rules: FleetRules
    subject: str = ""
    placement: Placement = field(default_factory=Placement)
    deadlines: Deadlines = field(default_factory=Deadlines)
    sharing: Sharing | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The factory's pickle by its content: SHA-256 and size."""

    digest: str
    size_bytes: int


def difference(known: tuple[Manifest, Submission], asked: tuple[Manifest, Submission]) -> str | None:
    """What another search under the name of a `known` one has differently; None where it is the same search."""
    (manifest, own), (theirs, other) = known, asked
    same_subject = own.subject == other.subject if own.subject and other.subject else manifest.digest == theirs.digest
    pairs = (
        ("model or evaluator", same_subject),
        ("space", own.search.space == other.search.space),
        ("objective", own.search.objective == other.search.objective),
    )
    return next((what for what, same in pairs if not same), None)


def pickled(factory: Callable[[], Evaluator], folder: Path) -> tuple[Path, Manifest]:
    """Writes the factory's pickle into `folder`; raises `InvalidInput` where it cannot be pickled."""
    path = folder / FACTORY
    try:
        with path.open("wb") as file:
            cloudpickle.dump(factory, file)
    except Exception as error:
        raise InvalidInput(f"the model, the data or a function cannot be sent to the cluster: {error}") from error
    return path, Manifest(digest=_digest(path), size_bytes=path.stat().st_size)


def chunks(path: Path) -> Iterator[bytes]:
    """The file in pieces of at most `CHUNK_BYTES`."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def read_chunk(path: Path, number: int) -> bytes:
    """One of the pieces, from 0."""
    with path.open("rb") as file:
        file.seek(number * CHUNK_BYTES)
        return file.read(CHUNK_BYTES)


def state_root(state: str | None) -> Path:
    """The folder that searches are kept in: the given one, or the user's own on this machine."""
    return Path(state) if state else state_folder() / "searches"


def check_search_name(name: object) -> str:
    """`name` if it can name a search, and so its folder; raises `InvalidInput`."""
    if name in (".", ".."):
        raise InvalidInput(f"search {name!r} is no name: use letters and digits, too")
    return check_name("search", name)


def complete(folder: Path, manifest: Manifest, request: Submission) -> None:
    """Checks what was streamed into `folder` and makes it the search's; raises `FleetError` if it is damaged."""
    if _digest(folder / FACTORY) != manifest.digest:
        raise FleetError("the search did not arrive as it was sent; submit it again")
    with replacing(folder / REQUEST, mode=0o600) as (file,):  # it may hold the password of a store
        file.write(cloudpickle.dumps(request))
    fields = {"digest": manifest.digest, "size_bytes": manifest.size_bytes}
    write_atomically(folder / MANIFEST, json.dumps(fields).encode())


def remove(folder: Path) -> None:
    """Removes the search of `folder`; cut off at any point it is whole no more."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.iterdir():
        if not path.name.startswith("."):  # whose folder it is stays
            path.unlink()


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a whole search."""
    return (folder / MANIFEST).exists()


def read(folder: Path) -> tuple[Manifest, Submission]:
    """What `complete` wrote. Raises `FleetError` where another version wrote it."""
    try:
        request = pickle.loads((folder / REQUEST).read_bytes())
    except (ImportError, AttributeError, pickle.UnpicklingError, EOFError) as error:
        raise FleetError(
            f"the search in {folder} was begun by another version of model_opt ({error}): end it with that version, or "
            "submit it anew under another name"
        ) from error
    if not isinstance(request, Submission):
        raise FleetError(f"{folder / REQUEST} is not a search")
    return Manifest(**json.loads((folder / MANIFEST).read_text())), request


def fetched(manifest: Manifest, cache: Path, fetch: Callable[[int], bytes]) -> Path:
    """The factory's pickle in `cache`, from `fetch(number)` of a chunk where it is not there whole."""
    path = cache / f"{manifest.digest}.pickle"
    if path.exists() and _digest(path) == manifest.digest:
        return path
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with replacing(path) as (file,):
        for number in range(-(-manifest.size_bytes // CHUNK_BYTES)):
            chunk = fetch(number)
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != manifest.digest:
            raise FleetError("the search's files did not arrive as the coordinator has them")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
