"""What a model's architecture is, without its weights and without the user's names."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


class Family(StrEnum):
    """The architecture families that have strategies of their own."""

    CNN = "cnn"
    VIT = "vit"
    HYBRID = "hybrid"
    DIFFUSION = "diffusion"
    OTHER = "other"


OPERATORS = (
    "conv1x1",
    "conv_kxk",
    "conv_depthwise",
    "conv_grouped",
    "conv_transposed",
    "linear",
    "attention",
    "cross_attention",
    "batch_norm",
    "layer_norm",
    "group_norm",
    "relu",
    "gelu",
    "silu",
    "hardswish",
    "sigmoid",
    "softmax",
    "pool",
    "upsample",
    "embedding",
    "recurrent",
    "other",
)
"""The closed vocabulary of operators: nothing else ever leaves a deployment."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of layers that work at one resolution and width: `share` is its part of the parameters, in [0, 1]."""

    width: int
    layers: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ModelSignature:
    """An architecture. `operators` counts modules by the names in `OPERATORS`."""

    family: Family
    parameters: int
    layers: int
    operators: Mapping[str, int]
    stages: tuple[Stage, ...]

    @cached_property
    def key(self) -> str:
        """blake2b-128 over all fields, as 32 hexadecimal digits; the same in every process."""
        fields = {
            "family": str(self.family),
            "parameters": self.parameters,
            "layers": self.layers,
            "operators": sorted(self.operators.items()),
            "stages": [[s.width, s.layers, round(s.share, 4)] for s in self.stages],
        }
        text = json.dumps(fields, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @cached_property
    def vector(self) -> NDArray[np.float32]:
        """`[32]`, unit length: what similarity is the cosine of.

        Family (5), operator shares (22), and logarithms of parameters, layers, first and last width, and number of
        stages (5), each block weighted so that the family counts most, then operators, then sizes.
        """
        family = np.array([self.family == member for member in Family], dtype=np.float32)
        counts = np.array([self.operators.get(name, 0) for name in OPERATORS], dtype=np.float32)
        shares = np.sqrt(counts / max(float(counts.sum()), 1.0))
        widths = [stage.width for stage in self.stages] or [1]
        sizes = np.array(
            [
                math.log10(max(self.parameters, 1)) / 9,
                math.log2(max(self.layers, 1)) / 10,
                math.log2(max(widths[0], 1)) / 12,
                math.log2(max(widths[-1], 1)) / 12,
                len(self.stages) / 8,
            ],
            dtype=np.float32,
        )
        joined = np.concatenate([family, shares, sizes * 0.6])
        return np.asarray(joined / np.linalg.norm(joined), dtype=np.float32)

    def coarse(self) -> "ModelSignature":
        """The signature as it may leave a deployment: counts in half-octave buckets, shares in sixteenths."""
        return ModelSignature(
            family=self.family,
            parameters=_half_octave(self.parameters),
            layers=_half_octave(self.layers),
            operators={name: _half_octave(count) for name, count in self.operators.items() if count},
            stages=tuple(
                Stage(width=_half_octave(s.width), layers=_half_octave(s.layers), share=round(s.share * 16) / 16)
                for s in self.stages
            ),
        )


def _half_octave(count: int) -> int:
    """`count` rounded to the nearest power of √2; zero stays zero."""
    return 0 if count <= 0 else round(2 ** (round(2 * math.log2(count)) / 2))
