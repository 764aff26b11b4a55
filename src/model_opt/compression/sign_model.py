"""Reads a model's signature and family from its structure: never from the names of its classes or attributes."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import nn

from model_opt.compression.stages import layers_of, stages, weighted_layers
from model_opt.search.model_signature import Family, ModelSignature, Stage

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool1d)

SIMPLE: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (TRANSPOSED, "conv_transposed"),
    ((nn.Linear,), "linear"),
    (BATCH_NORMS, "batch_norm"),
    ((nn.LayerNorm,), "layer_norm"),
    ((nn.GroupNorm,), "group_norm"),
    ((nn.ReLU, nn.ReLU6), "relu"),
    ((nn.GELU,), "gelu"),
    ((nn.SiLU,), "silu"),
    ((nn.Hardswish,), "hardswish"),
    ((nn.Sigmoid, nn.Hardsigmoid), "sigmoid"),
    ((nn.Softmax,), "softmax"),
    (POOLS, "pool"),
    ((nn.Upsample,), "upsample"),
    ((nn.Embedding,), "embedding"),
    ((nn.RNNBase,), "recurrent"),
)
"""Module classes and the operator they count as; the first that fits wins."""


def sign_model(model: nn.Module) -> ModelSignature:
    """The signature of `model`. Equal architectures get equal keys in every process."""
    layers = weighted_layers(model)
    return ModelSignature(
        family=family_of(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=len(layers),
        operators=_operators(model),
        stages=_stages(model),
    )


def family_of(model: nn.Module) -> Family:
    """The architecture family: what attends, what convolves, what is modulated by a time step."""
    attentions = [module for module in model.modules() if attends(module)]
    spatial = [conv for conv in _convolutions(model) if _is_spatial(conv)]
    if _is_diffusion(model, attentions, spatial):
        return Family.DIFFUSION
    if not attentions:
        return Family.CNN if _convolutions(model) else Family.OTHER
    if len(spatial) >= 3:
        return Family.HYBRID
    return Family.VIT if _convolutions(model) or not _embeds_words(model) else Family.OTHER


def attends(module: nn.Module) -> bool:
    """Whether `module` itself is an attention: its children project one width to queries, keys and values."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    projections = _projections(module)
    if not projections:
        return False
    fused = any(a.wide == 3 * a.narrow and b.narrow == a.narrow for a, b in pairwise(projections))
    shared = any(
        a.wide == a.narrow and b.wide == 2 * b.narrow and c.wide == c.narrow == a.wide
        for a, b, c in zip(projections, projections[1:], projections[2:], strict=False)
    )
    if any(_groups_queries(*four) for four in zip(*(projections[at:] for at in range(4)), strict=False)):
        return True
    width, count = Counter(p.wide for p in projections).most_common(1)[0]
    # queries, keys and values may read inputs of other widths (cross attention), and the last one mixes the heads
    separate = count >= 3 and sum(p.wide == width and p.narrow != 4 * width for p in projections) >= 3
    return fused or shared or separate


def _groups_queries(query: "_Projection", key: "_Projection", value: "_Projection", mixed: "_Projection") -> bool:
    """Whether these are an attention in which several heads of queries share a key and a value."""
    together = query.narrow == key.narrow and key == value and query.wide == mixed.narrow
    return together and query.wide > key.wide and query.wide % key.wide == 0


def crosses(module: nn.Module) -> bool:
    """Whether an attention reads its keys and values from a second sequence of another width."""
    if isinstance(module, nn.MultiheadAttention):
        return not module._qkv_same_embed_dim
    projections = _projections(module)
    if len(projections) < 3:
        return False
    width = Counter(p.wide for p in projections).most_common(1)[0][0]
    return sum(p.wide == width and p.narrow != width for p in projections) >= 2


class _Projection(NamedTuple):
    """A linear map of features: from `narrow` to `wide` of them."""

    narrow: int
    wide: int


def _projections(module: nn.Module) -> list[_Projection]:
    """Linear maps directly inside `module`, or alone in a container below it ("to_out.0"); none if they are fewer
    than two. 1x1 convolutions count only where the module holds no other convolution."""
    found: list[_Projection] = []
    for child in module.children():
        inner = [child]
        if isinstance(child, nn.Sequential | nn.ModuleList):
            inner = [part for part in child if not isinstance(part, nn.Dropout | nn.Identity)]
        if len(inner) == 1 and (projection := _projection(inner[0])):
            found.append(projection)
        elif isinstance(inner[0] if inner else None, CONVS):
            return []
    return found if len(found) >= 2 else []


def _projection(layer: nn.Module) -> _Projection | None:
    if isinstance(layer, nn.Linear):
        return _Projection(layer.in_features, layer.out_features)
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        return _Projection(layer.in_channels, layer.out_channels)
    return None


def _convolutions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (*CONVS, *TRANSPOSED))]


def _is_spatial(conv: nn.Module) -> bool:
    """Whether a convolution mixes neighbouring positions; one that only cuts into patches does not."""
    kernel, stride = tuple(conv.kernel_size), tuple(conv.stride)  # type: ignore[arg-type]
    return max(kernel) > 1 and kernel != stride


def _is_diffusion(model: nn.Module, attentions: list[nn.Module], spatial: list[nn.Module]) -> bool:
    """A denoiser: a U-Net that gives back as many channels as it takes, or blocks modulated by a time step (adaLN)."""
    modulated = sum(
        isinstance(module, nn.Linear) and module.out_features == 6 * module.in_features for module in model.modules()
    )
    if attentions and modulated >= 2:
        return True
    if len(spatial) < 3:
        return False
    first, last = spatial[0], spatial[-1]
    same_channels = first.in_channels == last.out_channels
    conditioned = any(crosses(module) for module in attentions) or any(
        isinstance(module, nn.GroupNorm) for module in model.modules()
    )
    return bool(same_channels and conditioned and _embeds_time(model))


def _embeds_time(model: nn.Module) -> bool:
    """Whether a two-layer perceptron widens a vector before any block reads it (the usual embedding of a time step)."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return any(
        a.out_features >= 2 * a.in_features and a.out_features == b.in_features == b.out_features
        for a, b in pairwise(linears)
    )


def _embeds_words(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Embedding) for module in model.modules())


def _operators(model: nn.Module) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for module in model.modules():
        counts.update(_operator_names(module))
    return {name: counts[name] for name in sorted(counts)}


def _operator_names(module: nn.Module) -> Iterator[str]:
    if isinstance(module, CONVS):
        yield _convolution_name(module)
        return
    if attends(module):
        yield "cross_attention" if crosses(module) else "attention"
        return
    name = next((name for types, name in SIMPLE if isinstance(module, types)), None)
    if name:
        yield name
    elif not list(module.children()) and next(module.parameters(recurse=False), None) is not None:
        yield "other"


def _convolution_name(conv: nn.Module) -> str:
    if conv.groups == conv.in_channels and conv.groups != 1:
        return "conv_depthwise"
    if conv.groups != 1:
        return "conv_grouped"
    return "conv1x1" if max(conv.kernel_size) == 1 else "conv_kxk"  # type: ignore[arg-type]


def _stages(model: nn.Module) -> tuple[Stage, ...]:
    total = max(sum(parameter.numel() for parameter in model.parameters()), 1)
    found = []
    for name in stages(model):
        layers = [layer for _, layer in layers_of(model, name)]
        held = sum(parameter.numel() for layer in layers for parameter in layer.parameters(recurse=False))
        found.append(Stage(width=max(map(_width, layers)), layers=len(layers), share=held / total))
    return tuple(found)


def _width(layer: nn.Module) -> int:
    """Output channels or features of a weighted layer."""
    for name in ("out_channels", "out_features", "embedding_dim"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    return 1
