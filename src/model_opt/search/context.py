"""Where a measurement was made. Absolute latencies never mix across contexts."""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a latency depends on besides the model and the plan.

    `device` is the device class: processor model and best instruction set, or GPU, driver, power limit and MIG slice.
    `libraries` are sorted (name, version) pairs. `dtype` is the baseline's. `input_shapes` are those of one example
    input, batch first.
    """

    device: str
    libraries: tuple[tuple[str, str], ...]
    dtype: str
    threads: int
    batch: int
    input_shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def key(self) -> str:
        """blake2b-128 over the fields, as 32 hexadecimal digits."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
