"""Attention as plain layers: what `nn.MultiheadAttention` is rewritten to, so that every technique sees its linears."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Attention(nn.Module):
    """What both kinds share; callable in every way in which `nn.MultiheadAttention` is, weights not returned."""

    in_proj_bias = None  # nn.TransformerEncoderLayer asks; None keeps it on its plain path
    in_proj_weight = None
    _qkv_same_embed_dim = True

    def __init__(self, *, num_heads: int, head_dim: int, proj: nn.Linear, batch_first: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.batch_first = num_heads, head_dim, batch_first
        self.proj = proj

    def split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """`projected` `[batch, tokens, parts·heads·head_dim]` as `parts` tensors `[batch, heads, tokens, head_dim]`."""
        batch, tokens, _ = projected.shape
        apart = projected.reshape(batch, tokens, parts, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return apart.unbind(0)

    def join(self, heads: Tensor) -> Tensor:
        """`heads` `[batch, heads, tokens, head_dim]` through the output projection."""
        batch, _, tokens, _ = heads.shape
        joined: Tensor = self.proj(heads.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim))
        return joined


class SelfAttention(_Attention):
    """softmax(q kᵀ/√d) v with q, k and v from one linear `qkv`."""

    def __init__(self, *, qkv: nn.Linear, **shared: Any) -> None:
        super().__init__(**shared)
        self.qkv = qkv

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """`query` attends to itself; `key` and `value` are the same tensor, by construction."""
        tokens = query if self.batch_first else query.transpose(0, 1)
        q, k, v = self.split(self.qkv(tokens), 3)
        mask = _mask(attn_mask, key_padding_mask, self.num_heads, q)
        heads = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal and mask is None)
        joined = self.join(heads)
        return (joined if self.batch_first else joined.transpose(0, 1)), None


class CrossAttention(_Attention):
    """softmax(q kᵀ/√d) v with q from one sequence, k and v by one linear `kv` from another."""

    def __init__(self, *, q: nn.Linear, kv: nn.Linear, **shared: Any) -> None:
        super().__init__(**shared)
        self.q, self.kv = q, kv

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """`query` attends to `key`; `value` is the same tensor as `key`, by construction."""
        tokens, context = (query, key) if self.batch_first else (query.transpose(0, 1), key.transpose(0, 1))
        (q,) = self.split(self.q(tokens), 1)
        k, v = self.split(self.kv(context), 2)
        mask = _mask(attn_mask, key_padding_mask, self.num_heads, q)
        joined = self.join(functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal and mask is None))
        return (joined if self.batch_first else joined.transpose(0, 1)), None


def _mask(attn_mask: Tensor | None, padding: Tensor | None, heads: int, like: Tensor) -> Tensor | None:
    """The masks of `nn.MultiheadAttention` (True: not allowed) as one that is added to the scores, or None."""
    parts = []
    if attn_mask is not None:
        added = _added(attn_mask, like)
        parts.append(added.reshape(-1, heads, *added.shape[1:]) if added.dim() == 3 else added)
    if padding is not None:
        parts.append(_added(padding, like)[:, None, None, :])
    return sum(parts[1:], parts[0]) if parts else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, float("-inf"))


def from_multihead(old: nn.MultiheadAttention, crossed: bool) -> nn.Module | None:
    """`old` as plain layers that compute the same, or None where it has parts that these do not have."""
    if not old._qkv_same_embed_dim or old.bias_k is not None or old.add_zero_attn:
        return None
    width = old.embed_dim
    shared = {
        "num_heads": old.num_heads,
        "head_dim": width // old.num_heads,
        "proj": _linear(old.out_proj.weight, old.out_proj.bias),
        "batch_first": old.batch_first,
    }
    weight, bias = old.in_proj_weight, old.in_proj_bias
    new: nn.Module
    if crossed:
        q = _linear(weight[:width], None if bias is None else bias[:width])
        new = CrossAttention(q=q, kv=_linear(weight[width:], None if bias is None else bias[width:]), **shared)
    else:
        new = SelfAttention(qkv=_linear(weight, bias), **shared)
    return new.train(old.training)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


def leave_fast_path(model: nn.Module) -> nn.Module:
    """`model`, whose `nn.TransformerEncoder` no longer takes the fast path: it reads the layers' weights by name there,
    which linears that are not torch's own do not have."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model
