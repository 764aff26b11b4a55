"""Stages of a model: the top-level blocks that decisions can be made for separately."""

from collections.abc import Iterator, Sequence

from torch import nn

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.ConvTranspose2d, nn.Embedding)


SAME = "same"
"""The first option of a stage's decision: whatever the whole model's decision says."""


def weighted_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of the layers that hold most weights, in the order in which they are defined."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, WEIGHTED)]


def stage_prefixes(model: nn.Module) -> list[str]:
    """Module-name prefixes that cut `model` into runs of at least two weighted layers, in order of definition.

    A container that holds nearly everything ("features", "encoder.layers") is opened until there are several parts.
    """
    prefix, layers = "", [name for name, _ in weighted_layers(model)]
    while True:
        inside = model.get_submodule(prefix) if prefix else model
        parts = [f"{prefix}.{name}".lstrip(".") for name, _ in inside.named_children()]
        counts = [(part, _count(layers, part)) for part in parts]
        total = sum(count for _, count in counts)
        if not total:
            return []
        name, most = max(counts, key=lambda item: item[1])
        if most < 0.8 * total:
            return [part for part, count in counts if count >= 2]
        prefix = name
        if most == 1:
            return []


def _count(layers: Sequence[str], prefix: str) -> int:
    """How many of the layers are in `prefix`; those of a module that has two names are in the first of them."""
    return sum(name == prefix or name.startswith(prefix + ".") for name in layers)


def stages(model: nn.Module, most: int = 4) -> dict[str, list[str]]:
    """Stage name ("stage1", …) → prefixes of module names, at most `most` stages of similar numbers of layers."""
    prefixes, layers = stage_prefixes(model), [name for name, _ in weighted_layers(model)]
    counts = [_count(layers, prefix) for prefix in prefixes]
    if len(prefixes) < 2:
        return {}
    per_stage = sum(counts) / min(most, len(prefixes))
    grouped: list[list[str]] = []
    filled = 0.0
    for prefix, count in zip(prefixes, counts, strict=True):
        if not grouped or (filled >= per_stage * len(grouped) - 1e-9 and len(grouped) < most):
            grouped.append([])
        grouped[-1].append(prefix)
        filled += count
    return {f"stage{number}": names for number, names in enumerate(grouped, 1)}


def layers_of(model: nn.Module, stage: str | None) -> Iterator[tuple[str, nn.Module]]:
    """The weighted layers of `stage`; of the whole model where it is None."""
    prefixes = None if stage is None else stages(model).get(stage, [])
    for name, module in weighted_layers(model):
        if prefixes is None or any(name == p or name.startswith(p + ".") for p in prefixes):
            yield name, module
