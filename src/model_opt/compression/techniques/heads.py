"""Attention heads as a unit of pruning: the weakest leave, and the width of each of the others stays.

Michel, Levy & Neubig ("Are Sixteen Heads Really Better than One?", NeurIPS 2019) remove heads by the gradient of a
mask; here the weights of a head decide, as for channels, and the refit repairs what is left.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_opt.compression.techniques.attention import SelfAttention
from model_opt.compression.techniques.refit import KEPT


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of one attention: `makers` give q, k and v (`parts` of them in each linear), `out` joins them.

    `owner` counts its heads in the attributes `counts`, and the width of all of them in `widths`.
    """

    name: str
    owner: nn.Module
    makers: tuple[nn.Linear, ...]
    parts: int
    out: nn.Linear
    counts: tuple[str, ...]
    widths: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many heads there are."""
        return int(getattr(self.owner, self.counts[0]))

    @property
    def width(self) -> int:
        """Features of one head."""
        return self.out.in_features // self.count


def heads_of(model: nn.Module) -> Iterator[Heads]:
    """The attentions whose heads can go: the cleaned graph's own, and encoders' as Hugging Face builds them."""
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention):
            yield Heads(
                name=f"{name}.qkv", owner=module, makers=(module.qkv,), parts=3, out=module.proj, counts=("num_heads",)
            )
        elif found := _encoder(name, module):
            yield found


def _encoder(name: str, module: nn.Module) -> Heads | None:
    """BERT's layout: `self.{query, key, value}` and `output.dense`."""
    inner, after = getattr(module, "self", None), getattr(module, "output", None)
    makers = tuple(getattr(inner, part, None) for part in ("query", "key", "value"))
    out = getattr(after, "dense", None)
    linears = tuple(layer for layer in makers if isinstance(layer, nn.Linear))
    if not isinstance(inner, nn.Module) or len(linears) < 3 or not isinstance(out, nn.Linear):
        return None
    if not isinstance(getattr(inner, "num_attention_heads", None), int):
        return None
    return Heads(
        name=f"{name}.self.query",
        owner=inner,
        makers=linears,
        parts=1,
        out=out,
        counts=("num_attention_heads",),
        widths=("all_head_size",),
    )


def prune_heads(model: nn.Module, ratio: float, inside: Callable[[str], bool]) -> int:
    """Removes about `ratio` of the heads of every attention that is `inside`, in place, at least one stays; returns how
    many went."""
    gone = 0
    for heads in list(heads_of(model)):
        keep = max(1, round(heads.count * (1 - ratio)))
        if inside(heads.name) and keep < heads.count and heads.out.in_features % heads.count == 0:
            gone += heads.count - keep
            _keep(heads, importance(heads).topk(keep).indices.sort().values)
    return gone


def importance(heads: Heads) -> Tensor:
    """The squared norm of all weights that belong to each head, `[heads]`."""
    total = heads.out.weight.detach().square().sum(0).view(heads.count, -1).sum(1)
    for maker in heads.makers:
        rows = maker.weight.detach().square().sum(1)
        total = total + rows.view(heads.parts, heads.count, -1).sum((0, 2))
    return total


def _keep(heads: Heads, kept: Tensor) -> None:
    features = (kept[:, None] * heads.width + torch.arange(heads.width, device=kept.device)).flatten()
    full = heads.count * heads.width
    for maker in heads.makers:
        rows = torch.cat([part * full + features for part in range(heads.parts)])
        _slice(maker, rows, 0)
        setattr(maker, KEPT, getattr(maker, KEPT, torch.arange(heads.parts * full))[rows.cpu()])
    _slice(heads.out, features, 1)
    for attribute in heads.widths:
        setattr(heads.owner, attribute, len(features))
    for attribute in heads.counts:
        setattr(heads.owner, attribute, len(kept))


def _slice(layer: nn.Linear, kept: Tensor, axis: int) -> None:
    grad = layer.weight.requires_grad
    layer.weight = nn.Parameter(layer.weight.detach().index_select(axis, kept).contiguous(), requires_grad=grad)
    if axis == 1:
        layer.in_features = len(kept)
        return
    layer.out_features = len(kept)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[kept], requires_grad=grad)
