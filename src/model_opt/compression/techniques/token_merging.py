"""Token merging: in every block, the pairs of tokens whose keys are most alike become one.

Bipartite soft matching (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, section 3): after attention, a
block's tokens are split in turn into two sets, each token of the first finds its most similar in the second by the
cosine of their mean keys, and the r best pairs are averaged, weighted by how many patches each stands for; that size
enters the next attention as log(size). Tokens before the image's (the class token) are never merged. All shapes follow
from the sequence's length, so that the result can be exported.

Diffusion UNets merge before, and undo after, the self-attention of their finest transformer blocks, through `tomesd`.
"""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from model_opt.compression.cost import cost, require_cheaper
from model_opt.compression.inputs import Inputs, call
from model_opt.compression.samples import few, fingerprint, hooked, same
from model_opt.compression.technique import Handler, Machine, Material, Technique, register
from model_opt.compression.techniques.attention import SelfAttention
from model_opt.compression.techniques.clean import EXACT_DB, ensure
from model_opt.compression.techniques.prune import shapes_of
from model_opt.errors import MissingDependency, TechniqueError
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

PER_BLOCK = ("4", "8", "16")
"""Options of a ViT: how many tokens each block merges away."""
SHARES = ("0.25", "0.5")
"""Options of a UNet: which share of the tokens is merged around each self-attention."""
_NAMES = {
    "norm1": ("ln_1", "norm1"),
    "attention": ("self_attention", "attn", "attention"),
    "norm2": ("ln_2", "norm2"),
    "mlp": ("mlp",),
}
_SCALES = {"scale1": ("ls1",), "scale2": ("ls2",)}


def merge(tokens: Tensor, size: Tensor, key: Tensor, count: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Merges `count` of `tokens` `[batch, tokens, width]` into others; returns the tokens left and their sizes.

    `size` `[batch, tokens, 1]` says how many patches each stands for, `key` `[batch, tokens, head_dim]` is what is
    compared. The first `prefix` tokens stay. The order is: prefix, those of the first set that are left, second set.
    """
    match = functional.normalize(key[:, prefix:], dim=-1)
    best, partner = (match[:, ::2] @ match[:, 1::2].transpose(1, 2)).max(-1)
    order = best.argsort(dim=-1, descending=True)
    gone, left = order[:, :count], order[:, count:].sort(dim=-1).values
    weighted = torch.cat([tokens * size, size], -1)
    first, second = weighted[:, prefix:][:, ::2], weighted[:, prefix:][:, 1::2]
    target = partner.gather(1, gone)[..., None] == torch.arange(second.shape[1], device=tokens.device)
    second = second + target.to(tokens.dtype).transpose(1, 2) @ _rows(first, gone)
    joined = torch.cat([weighted[:, :prefix], _rows(first, left), second], 1)
    size = joined[..., -1:]
    return joined[..., :-1] / size, size


def merge_at_most(tokens: Tensor, size: Tensor | None, key: Tensor, count: int, prefix: int) -> tuple[Tensor, Tensor]:
    """`merge` of as many of `count` tokens as there are pairs; without a `size` each stands for one patch."""
    size = torch.ones_like(tokens[..., :1]) if size is None else size
    count = min(count, (tokens.shape[1] - prefix) // 2)
    return merge(tokens, size, key, count, prefix) if count > 0 else (tokens, size)


fx.wrap("merge_at_most")  # a tracer takes it whole: how much it merges depends on the sequence's length


def _rows(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


class MergingBlock(nn.Module):
    """A pre-norm transformer block made of another's parts, which merges `count` tokens after its attention."""

    def __init__(self, parts: dict[str, nn.Module], count: int, prefix: int) -> None:
        super().__init__()
        self.norm1, self.attention = parts["norm1"], parts["attention"]
        self.norm2, self.mlp = parts["norm2"], parts["mlp"]
        self.scale1, self.scale2 = parts.get("scale1"), parts.get("scale2")
        self.count, self.prefix = count, prefix

    def forward(self, tokens: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`tokens` `[batch, tokens, width]` and their sizes (None: one patch each) after the block."""
        made, key = self._attend(self.norm1(tokens), size)
        tokens = tokens + (made if self.scale1 is None else self.scale1(made))
        if self.count > 0:
            tokens, size = merge_at_most(tokens, size, key, self.count, self.prefix)
        made = self.mlp(self.norm2(tokens))
        return tokens + (made if self.scale2 is None else self.scale2(made)), size

    def _attend(self, tokens: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention in which a token weighs as many patches as it stands for, and the mean key of each token."""
        own: Any = self.attention
        batch, count, _ = tokens.shape
        apart = own.qkv(tokens).reshape(batch, count, 3, own.num_heads, own.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = apart.unbind(0)
        if hasattr(own, "q_norm"):
            q, k = own.q_norm(q), own.k_norm(k)
        bias = None if size is None else size.log().transpose(1, 2)[:, None]
        heads = functional.scaled_dot_product_attention(q, k, v, bias)
        # a copy: as a mere view of what one kernel lays out so, it fails where an exporter takes the kernel apart
        apart = heads.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        joined = apart.view(batch, count, own.num_heads * own.head_dim)
        if hasattr(own, "norm"):
            joined = own.norm(joined)
        return own.proj(joined), k.mean(1)


class MergingBlocks(nn.Module):
    """Blocks that hand the sizes of merged tokens on to one another."""

    def __init__(self, blocks: Sequence[MergingBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens` `[batch, tokens, width]` after all blocks; fewer of them."""
        size: Tensor | None = None
        for block in self.blocks:
            tokens, size = block(tokens, size)
        return tokens


class MergedAttention(nn.Module):
    """Self-attention over merged tokens, whose results are copied back to all; the image is `high` × `wide` tokens."""

    def __init__(self, attention: nn.Module, share: float, high: int, wide: int) -> None:
        super().__init__()
        self.attention, self.share, self.high, self.wide = attention, share, high, wide

    def forward(self, hidden_states: Tensor, *args: Any, **keywords: Any) -> Tensor:
        """What the attention makes of the merged `hidden_states` `[batch, tokens, width]`, for every token."""
        from tomesd.merge import bipartite_soft_matching_random2d

        count = int(hidden_states.shape[1] * self.share)
        join, apart = bipartite_soft_matching_random2d(hidden_states, self.wide, self.high, 2, 2, count, no_rand=True)
        made: Tensor = apart(self.attention(join(hidden_states), *args, **keywords))
        return made


def vit_blocks(model: nn.Module) -> str | None:
    """The name of the one sequence of at least two plain transformer blocks, or None; Swin and MobileViT have none."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential) and len(module) >= 2 and all(_parts(block) for block in module)
    ]
    return found[0] if len(found) == 1 else None


def _parts(block: nn.Module) -> dict[str, nn.Module] | None:
    """The parts of a pre-norm block, or None where it is something else."""
    children = dict(block.named_children())
    parts = {part: children[n] for part, names in _NAMES.items() for n in names if n in children}
    if len(parts) < len(_NAMES) or not _plain(parts["attention"]):
        return None
    return parts | {part: children[n] for part, names in _SCALES.items() for n in names if n in children}


def _plain(attention: nn.Module) -> bool:
    if isinstance(attention, SelfAttention | nn.MultiheadAttention):
        return attention.batch_first
    named = all(hasattr(attention, name) for name in ("qkv", "proj", "num_heads", "head_dim", "q_norm", "k_norm"))
    return named and getattr(attention, "gate", None) is None


def merge_vit(model: nn.Module, count: int, inputs: Inputs) -> None:
    """Makes the blocks of `model` merge `count` tokens each, in place. Raises `TechniqueError` where they are not what
    they look like: rebuilt without merging they must compute what they did."""
    name = vit_blocks(model)
    if name is None:
        raise TechniqueError("no sequence of plain transformer blocks whose tokens could be merged")
    old: Any = model.get_submodule(name)
    prefix = _prefix(model, _tokens(model, name, inputs))
    before = fingerprint(model, inputs)
    blocks = [MergingBlock(_parts(block) or {}, 0, prefix) for block in old]
    model.set_submodule(name, nn.Sequential(MergingBlocks(blocks)).eval())
    if not same(before, fingerprint(model, inputs), EXACT_DB):
        raise TechniqueError("the transformer blocks are not of the plain pre-norm kind")
    for block in blocks:
        block.count = count


def _prefix(model: nn.Module, tokens: int) -> int:
    """How many tokens come before the image's: what the model says, else what a square image leaves over."""
    said = getattr(model, "num_prefix_tokens", None)
    return said if isinstance(said, int) else tokens - math.isqrt(tokens) ** 2


def _tokens(model: nn.Module, name: str, inputs: Inputs) -> int:
    """The length of the sequence that the module `name` is given."""
    seen: list[int] = []

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(int(args[0].shape[1]))

    with hooked([model.get_submodule(name).register_forward_pre_hook(before)]):
        call(model, inputs)
    return seen[0]


def unet_attentions(model: nn.Module) -> list[str]:
    """Names of the self-attentions of transformer blocks that also have a cross attention, as diffusers builds them."""
    return [
        f"{name}.attn1".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(getattr(module, "attn1", None), nn.Module)
        and isinstance(getattr(module, "attn2", None), nn.Module)
    ]


def merge_unet(model: nn.Module, share: float, inputs: Inputs) -> None:
    """Merges `share` of the tokens around the self-attentions that see most tokens, in place."""
    if importlib.util.find_spec("tomesd") is None:
        raise MissingDependency("tomesd", "diffusion")
    names = unet_attentions(model)
    if not names:
        raise TechniqueError("no transformer blocks with self-attention and cross attention")
    lengths = {name: _tokens(model, name, inputs) for name in names}
    most = max(lengths.values())
    side = math.isqrt(most)
    if side * side != most:
        raise TechniqueError(f"{most} tokens are no square image")
    for name in (n for n, length in lengths.items() if length == most):
        model.set_submodule(name, MergedAttention(model.get_submodule(name), share, side, side).eval())


def _apply(model: nn.Module, option: str, stage: str | None, plan: Plan, material: Material) -> nn.Module:
    model = ensure(model, material)
    inputs = few(material.example, 2)
    before, shape = cost(model, inputs), shapes_of(model, inputs)
    try:
        if option in SHARES:
            merge_unet(model, float(option), inputs)
        else:
            merge_vit(model, int(option), inputs)
        after = shapes_of(model, inputs)
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise TechniqueError(f"merging tokens breaks this model: {error}") from error
    if after != shape:
        raise TechniqueError(f"merging tokens changes the output's shape: {shape} → {after}")
    require_cheaper(before, cost(model, inputs), f"merging {option} tokens")
    return model


def _options(model: nn.Module, signature: ModelSignature, machine: Machine) -> Sequence[str]:
    """For a ViT the numbers that leave tokens over in the last block; for a UNet two shares, with tomesd installed."""
    name = vit_blocks(model)
    if name is not None:
        length = max((p.shape[1] for p in model.parameters() if p.dim() == 3 and p.shape[0] == 1), default=1)
        depth = sum(1 for _ in model.get_submodule(name).children())
        return tuple(r for r in PER_BLOCK if length > 1 and int(r) * depth < length)
    return SHARES if importlib.util.find_spec("tomesd") is not None and unet_attentions(model) else ()


register(
    Handler(
        decision="token_merging",
        leave_alone="0",
        technique=lambda option: Technique.TOKEN_MERGING,
        options=_options,
        apply=_apply,
        ordered=True,
    )
)
