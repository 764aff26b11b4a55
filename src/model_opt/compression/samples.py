"""What layers see and make on calibration data: samples at fixed positions, fingerprints, signal-to-noise ratios."""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_opt.compression.inputs import Inputs, batch_size, by_size, call, holds_list, join, rows, shapes, tensors
from model_opt.compression.stages import WEIGHTED, stages, weighted_layers
from model_opt.errors import TechniqueError

Solvable = nn.Conv2d | nn.Linear
SOLVABLE = (nn.Conv2d, nn.Linear)
"""The layers whose inputs can be laid out as rows of features."""


def few(inputs: Inputs, count: int) -> Inputs:
    """The first `count` rows, or all of `inputs` where its tensors do not share a batch axis, or may not."""
    if holds_list(inputs):
        return inputs
    sizes = {shape[0] if shape else 0 for shape in shapes(inputs)}
    return rows(inputs, 0, count) if len(sizes) == 1 and min(sizes) > count else inputs


def snr_db(reference: Tensor, other: Tensor) -> float:
    """10·log10 of the power of `reference` over that of the difference; infinite where they are equal."""
    if reference.shape != other.shape or not bool(torch.isfinite(other).all()):
        return -math.inf
    noise = float((reference.detach().double() - other.detach().double()).square().sum())
    power = float(reference.detach().double().square().sum())
    if not noise:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf


def same(reference: Sequence[Tensor], other: Sequence[Tensor], at_least_db: float) -> bool:
    """Whether the tensors agree pairwise to `at_least_db`."""
    if len(reference) != len(other):
        return False
    return all(snr_db(a, b) >= at_least_db for a, b in zip(reference, other, strict=True))


def fingerprint(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs of `model`, and what its last layer was given (outputs alone say nothing where a head is zero)."""
    last: list[Tensor] = []

    def seen(module: nn.Module, args: tuple[Any, ...]) -> None:
        last[:] = tensors(args)[:1]

    with hooked(m.register_forward_pre_hook(seen) for m in model.modules() if isinstance(m, WEIGHTED)):
        outputs = tensors(call(model, inputs))
    return [t.clone() for t in outputs + last]


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Hooks that are there inside the block only, with gradients off."""
    placed = list(handles)
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in placed:
            handle.remove()


def sample(batches: Sequence[Inputs], most: int = 512, elements: int = 5_000_000) -> Inputs:
    """One batch of calibration images for statistics: at most `most` rows, and at most about `elements` numbers, but
    32 rows if there are so many."""
    if holds_list(batches[0]):
        return batches[0]
    each = max(1, sum(t.numel() for t in tensors(batches[0])) // batch_size(batches[0]))
    wanted = max(32, min(most, elements // each))
    taken, count = [], 0
    for batch in of_one_size(batches):
        taken.append(batch)
        count += batch_size(batch)
        if count >= wanted:
            break
    return few(join(taken), wanted)


def of_one_size(batches: Sequence[Inputs]) -> list[Inputs]:
    """Those of the batches whose rows have the size that most rows have."""
    groups = ([batches[place] for place in group] for group in by_size(batches))
    return max(groups, key=lambda group: sum(map(batch_size, group)))


def positions(name: str, images: int, places: int, seed: int) -> Tensor:
    """Which of a layer's `places` are looked at, `[images, samples]`: the same for every model that has the layer.

    16 to 64 random ones for each image, about 16,384 rows in all; all of them where there are no more than that.
    """
    samples = min(64, max(16, 16384 // images))
    if places <= samples:
        return torch.arange(places).expand(images, places)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
    return torch.randint(places, (images, samples), generator=generator)


def _places(layer: Solvable, inputs: Tensor, images: int) -> tuple[int, int]:
    """Rows and columns of the layer's output for each image; (0, 0) where they cannot be told."""
    if isinstance(layer, nn.Linear):
        count = inputs.numel() // inputs.shape[-1]
        return (1, count // images) if count % images == 0 else (0, 0)
    if inputs.dim() != 4 or inputs.shape[0] != images or layer.padding_mode != "zeros":
        return 0, 0
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    sizes = (inputs.shape[2] + top + bottom, inputs.shape[3] + left + right)
    spans = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    high, wide = ((s - k) // t + 1 for s, k, t in zip(sizes, spans, layer.stride, strict=True))
    return high, wide


def sampled_inputs(name: str, layer: Solvable, inputs: Tensor, images: int, seed: int) -> Tensor | None:
    """What the layer multiplies at the sampled positions, `[images, samples, groups, features]`, features in the order
    of the flattened weight; None where the layer's rows cannot be told apart by image."""
    high, wide = _places(layer, inputs, images)
    if not high:
        return None
    at = positions(name, images, high * wide, seed).to(inputs.device)
    if isinstance(layer, nn.Linear):
        tokens = inputs.reshape(images, wide, inputs.shape[-1])
        return tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[-1])).unsqueeze(2)
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice).permute(0, 2, 3, 1)
    rows_, columns = (
        (place * stride)[..., None] + torch.arange(size, device=inputs.device) * dilation
        for place, stride, size, dilation in zip(
            (at // wide, at % wide), layer.stride, layer.kernel_size, layer.dilation, strict=True
        )
    )
    image = torch.arange(images, device=inputs.device)[:, None, None, None]
    patches = padded[image, rows_[..., :, None], columns[..., None, :]]  # [images, samples, kh, kw, channels]
    return patches.permute(0, 1, 4, 2, 3).reshape(images, at.shape[1], layer.groups, -1)


def sampled_outputs(
    name: str, layer: Solvable, inputs: Tensor, output: Tensor, seed: int, images: int
) -> Tensor | None:
    """The layer's outputs at the same positions, `[images, samples, outputs]`."""
    high, wide = _places(layer, inputs, images)
    if not high:
        return None
    at = positions(name, images, high * wide, seed).to(output.device)
    if isinstance(layer, nn.Linear):
        tokens = output.reshape(images, wide, output.shape[-1])
        return tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[-1]))
    flat = output.flatten(2)
    return flat.gather(2, at[:, None, :].expand(-1, flat.shape[1], -1)).transpose(1, 2).contiguous()


def outputs_of(model: nn.Module, inputs: Inputs, seed: int) -> dict[str, Tensor]:
    """Pre-activations Y_l of every solvable layer that is called once, `[images, samples, outputs]`, by name."""
    images, found, calls = batch_size(inputs), {}, dict[str, int]()

    def watch(name: str, layer: Solvable) -> Any:
        def seen(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            found[name] = sampled_outputs(name, layer, args[0], output, seed, images)

        return layer.register_forward_hook(seen)

    with hooked(watch(name, layer) for name, layer in solvable_layers(model)):
        call(model, inputs)
    return {name: value for name, value in found.items() if value is not None and calls[name] == 1}


def solvable_layers(model: nn.Module) -> list[tuple[str, Solvable]]:
    """(name, layer) of the plain convolutions and linears of `model`."""
    return [(n, m) for n, m in weighted_layers(model) if isinstance(m, SOLVABLE) and type(m) in SOLVABLE]


def stage_filter(teacher: nn.Module, stage: str | None) -> Callable[[str], bool]:
    """Whether a layer's name lies in `stage` of `teacher`; always, where that is None. Raises `TechniqueError`.

    The stages are the teacher's: cleaning and pruning a copy must not move their borders.
    """
    if stage is None:
        return lambda name: True
    known = stages(teacher)
    if stage not in known:
        raise TechniqueError(f"no stage {stage!r}; the model's stages: {', '.join(known) or 'none'}")
    return lambda name: any(name == p or name.startswith(p + ".") for p in known[stage])
