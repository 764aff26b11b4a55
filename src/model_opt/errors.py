"""Every error that `model_opt` raises on purpose.

ModelOptError
├── InvalidInput            the caller's argument is wrong: what, where, what to do (also a ValueError)
│   └── UnknownName         a name that nothing is registered under; lists the known ones
├── MissingDependency       an optional package is not installed; names the extra (also an ImportError)
├── SearchError             a search cannot go on
├── TechniqueError          a technique cannot be used here; the search records the plan as illegal
│   └── TechniqueDidNothing it ran, and its postcondition (size or FLOPs changed) does not hold
├── SaveFailed              what was found could not be written; carries it, and says where it was kept
├── MeasurementFailed       one plan could not be measured: crash, out of memory, deadline, wrong outputs
├── WireError               bytes from elsewhere that are not a valid envelope
├── StoreError              a knowledge store
│   ├── StoreUnavailable    it cannot be reached now; retrying later may help
│   ├── StoreConflict       what is written contradicts what is there
│   └── StoreCorrupt        what is there cannot be read; it has been left as it is
├── HubError                a hub between deployments
│   ├── HubUnreachable      it does not answer, or not in time; trying again later may help
│   └── HubRefused          it answers, and says no: why, and what to do
├── FleetError              the cluster: no coordinator, a refused term, an infeasible request
└── FolderInUse             another process works in a folder that only one may work in; says which
"""

import re
from collections.abc import Iterable

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|ALLOC_FAILED|DefaultCPUAllocator", re.I
)


def is_out_of_memory(text: str) -> bool:
    """Whether `text` is how torch, CUDA or the C++ library say that memory ran out."""
    return "OutOfMemoryError" in text or _OUT_OF_MEMORY.search(text) is not None


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether that is what `error` says; torch's errors are known by name and text only."""
    return isinstance(error, MemoryError) or is_out_of_memory(f"{type(error).__name__} {error}")


class ModelOptError(Exception):
    """The root of the tree."""


class InvalidInput(ModelOptError, ValueError):
    """The caller's argument is wrong."""


class UnknownName(InvalidInput):
    """A name that nothing is registered under."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        """`kind` is the noun for the message ("constraint"); `known` are the names that would have worked."""
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(sorted(known)) or 'none'}")


class MissingDependency(ModelOptError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """`extra` is the extra of `model_opt` that brings `package`."""
        super().__init__(f"{package} is not installed: pip install 'model_opt[{extra}]'")


class SearchError(ModelOptError):
    """A search cannot go on."""


class TechniqueError(ModelOptError):
    """A technique cannot be used on this model or device.

    `blamed` are (decision, option) pairs of which it is known that no plan that has them all can be made.
    """

    blamed: frozenset[tuple[str, str]] = frozenset()


class CannotExport(TechniqueError):
    """The model's own code is what an exporter cannot follow, whatever is done to it."""


class TechniqueDidNothing(TechniqueError):
    """A technique ran, and changed neither size nor FLOPs nor speed of what it was given."""


class MeasurementFailed(ModelOptError):
    """One plan could not be measured."""


class SaveFailed(ModelOptError):
    """What was found could not be written where the user wanted it."""

    def __init__(self, message: str, *, model: object, result: object) -> None:
        """`model` and `result` are what `optimize_auto` would have returned."""
        super().__init__(message)
        self.model, self.result = model, result


class WireError(ModelOptError):
    """Bytes from elsewhere that are not a valid envelope."""


class StoreError(ModelOptError):
    """A knowledge store failed."""


class StoreUnavailable(StoreError):
    """The store cannot be reached now; the caller keeps its data and tries again."""


class StoreConflict(StoreError):
    """What is written contradicts what is there."""


class StoreCorrupt(StoreError):
    """What is there cannot be read; it has been left as it is."""


class HubError(ModelOptError):
    """A hub failed."""


class HubUnreachable(HubError):
    """The hub does not answer; nothing is lost, and the same call may be made again."""


class HubRefused(HubError):
    """The hub refuses the request."""


class FleetError(ModelOptError):
    """The cluster cannot do what was asked."""


class FolderInUse(ModelOptError):
    """Another process works in the folder."""
