"""The clean graph: the same function, written so that pruning, low rank, int8 and runtimes find what they look for.

Exact to at least 80 dB, checked after every step; what does not check is undone. It does five things: "same"-padding
convolutions become a padding and an `nn.Conv2d`; `nn.MultiheadAttention` becomes linears around
`scaled_dot_product_attention`; batch norms are folded into the layer before them, or else behind them; modules that do
nothing in eval mode go; an activation module that is used several times becomes a function, so that a tracer sees each
use.
"""

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from model_opt.compression.inputs import UNWILLING, Inputs, call, tensors
from model_opt.compression.interface import with_flags_turned
from model_opt.compression.samples import few, fingerprint, same
from model_opt.compression.technique import Handler, Machine, Material, Technique, register
from model_opt.compression.techniques.attention import from_multihead
from model_opt.compression.techniques.fold_forward import folded, reader_of
from model_opt.errors import TechniqueDidNothing
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

EXACT_DB = 80.0
_MARK = "_model_opt_clean"


class Pass(nn.Module):
    """Returns its input. Unlike `nn.Identity` it is no leaf to a tracer, so that nothing of it is left in a graph."""

    def forward(self, input: Tensor) -> Tensor:
        """`input` itself."""
        return input


class PerUse(nn.Module):
    """An activation that is used in several places: a function to a tracer, one node for each use."""

    def __init__(self, function: str, **arguments: Any) -> None:
        """`function` is a name in `torch.nn.functional`."""
        super().__init__()
        self.function, self.arguments = function, arguments

    def forward(self, input: Tensor) -> Tensor:
        """The activation of `input`, out of place."""
        result: Tensor = getattr(functional, self.function)(input, **self.arguments)
        return result


_ACTIVATIONS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("relu6", ()),
    nn.GELU: ("gelu", ("approximate",)),
    nn.SiLU: ("silu", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Tanh: ("tanh", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.ELU: ("elu", ("alpha",)),
    nn.Mish: ("mish", ()),
}
_DO_NOTHING = ("Identity", "StochasticDepth", "DropPath")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Modules that take one another's places together: name → the new module."""

    kind: str
    new: Mapping[str, nn.Module]


@dataclass
class _Use:
    """One call of a module: its first argument, its result, and how often each had been written to by then."""

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    versions: tuple[int, ...]
    output: Any = None
    output_version: int = 0


@dataclass
class _Uses:
    """Every call of every module in one forward pass, with tensors kept alive so that identity means something."""

    by_module: dict[nn.Module, list[_Use]] = field(default_factory=lambda: defaultdict(list))

    def only(self, module: nn.Module) -> _Use | None:
        """The one call of `module`, or None where there are none or several."""
        found = self.by_module.get(module, [])
        return found[0] if len(found) == 1 else None


def clean(model: nn.Module, example: Inputs) -> dict[str, int]:
    """Rewrites `model`, in eval mode, in place. Returns how many edits of each kind held."""
    inputs = few(example, 2)
    wanted = _Wanted(model, inputs)
    done: dict[str, int] = {}
    for step in (_same_padding, _attention, _norms, _norms_forward, _do_nothing, _per_use):
        holds = wanted.outputs_hold if step is _norms_forward else wanted.holds
        kept = _apply(model, holds, step(model, inputs))
        for edit in kept:
            done[edit.kind] = done.get(edit.kind, 0) + 1
        if kept and step is _norms_forward:
            wanted.look_at_the_last_layer(model)
    _drop_passes(model, wanted)
    setattr(model, _MARK, True)
    return done


class _Wanted:
    """A model's fingerprint for inputs, and for the same with a mask that they do not set, which edits leave alone."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._known, flagged = [(inputs, fingerprint(model, inputs))], with_flags_turned(inputs)
        if flagged is not None:
            with suppress(*UNWILLING):
                self._known.append((flagged, fingerprint(model, flagged)))

    def holds(self, model: nn.Module) -> bool:
        """Whether `model` still has it."""
        return self._alike(model, None)

    def outputs_hold(self, model: nn.Module) -> bool:
        """Whether its outputs are the same; what its last layer is given may be another."""
        return self._alike(model, -1)

    def look_at_the_last_layer(self, model: nn.Module) -> None:
        """Takes what that is given now for what it is to be given."""
        self._known = [(inputs, before[:-1] + fingerprint(model, inputs)[-1:]) for inputs, before in self._known]

    def _alike(self, model: nn.Module, stop: int | None) -> bool:
        try:
            return all(
                same(before[:stop], fingerprint(model, inputs)[:stop], EXACT_DB) for inputs, before in self._known
            )
        except (RuntimeError, AttributeError, TypeError, ValueError, IndexError, KeyError, AssertionError):
            return False  # the model's own code needs what was replaced


def reference(material: Material) -> nn.Module:
    """The cleaned teacher, made once; never to be changed."""
    return _cleaned(material)[0]


def ensure(model: nn.Module, material: Material) -> nn.Module:
    """`model` if it is clean, else a cleaned copy of the teacher, of which `model` is a copy."""
    return model if hasattr(model, _MARK) else copy.deepcopy(reference(material))


def _cleaned(material: Material) -> tuple[nn.Module, dict[str, int]]:
    if material.findings.clean is None:
        model = copy.deepcopy(material.teacher).eval()
        material.findings.clean = (model, clean(model, material.example))
    return material.findings.clean


def _apply(model: nn.Module, holds: Callable[[nn.Module], bool], edits: Sequence[Edit]) -> list[Edit]:
    """Those of `edits` that leave the outputs as they were: all at once if that works, else one by one."""
    if not edits:
        return []
    undo = _put(model, {name: new for edit in edits for name, new in edit.new.items()})
    if holds(model):
        return list(edits)
    _put(model, undo)
    kept = []
    for edit in edits if len(edits) > 1 else ():
        undo = _put(model, edit.new)
        if holds(model):
            kept.append(edit)
        else:
            _put(model, undo)
    return kept


def _put(model: nn.Module, new: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Puts modules in their places and returns those that were there, in the order that undoes it."""
    old = {}
    for name, module in new.items():
        old[name] = model.get_submodule(name)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)
    return dict(reversed(old.items()))


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Uses]:
    uses = _Uses()

    def before(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        versions = tuple(t._version for t in tensors(args))
        uses.by_module[module].append(_Use(args, keywords, versions))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            use = uses.by_module[module][-1]
            use.output, use.output_version = output, output._version

    handles: list[Any] = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _uses(model: nn.Module, inputs: Inputs) -> _Uses:
    with _watched(model) as uses, torch.no_grad(), plainly():
        call(model, inputs)
    return uses


@contextmanager
def plainly() -> Iterator[None]:
    """Inside, `nn.TransformerEncoder` leaves its fast path, which hands hooks nested tensors: those have no sizes."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _same_padding(model: nn.Module, inputs: Inputs) -> list[Edit]:
    """Subclasses of `nn.Conv2d` that pad for themselves: as TensorFlow's "same" does, or always alike."""
    own = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and type(m) is not nn.Conv2d}
    if not own:
        return []
    uses, edits = _uses(model, inputs), []
    for name, conv in own.items():
        use = uses.only(conv)
        if use is not None and isinstance(use.output, Tensor):
            image = use.inputs[0]
            rewritten = (made for made in _padded(conv, image, use.output) if _same_at_every_size(conv, made, image))
            edits += [Edit(kind="same padding", new={name: plain}) for plain in itertools.islice(rewritten, 1)]
    return edits


@torch.no_grad()
def _same_at_every_size(conv: nn.Module, plain: nn.Module, image: Tensor) -> bool:
    """Whether the two answer alike for images that are a few pixels smaller, too, where `conv` takes those."""
    for less in range(1, 4):
        smaller = image[..., : image.shape[-2] - less, : image.shape[-1] - less]
        try:
            wanted = conv(smaller)
        except RuntimeError:
            return True
        if not same([wanted], [plain(smaller)], EXACT_DB):
            return False
    return True


class SamePad(nn.Module):
    """Zeros around an image so that a convolution with `stride` and `reach` (both high, wide) makes ⌈size ÷ stride⌉ of
    it, the odd one at the right and the bottom, as TensorFlow's "same" does."""

    def __init__(self, stride: tuple[int, int], reach: tuple[int, int]) -> None:
        """A stride is at most the reach."""
        super().__init__()
        self.stride, self.reach = stride, reach

    def forward(self, image: Tensor) -> Tensor:
        """The padded image."""
        high = self.reach[0] - 1 - (image.shape[-2] - 1) % self.stride[0]
        wide = self.reach[1] - 1 - (image.shape[-1] - 1) % self.stride[1]
        return functional.pad(image, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


def _padded(conv: nn.Conv2d, image: Tensor, output: Tensor) -> Iterator[nn.Module]:
    """`conv` as a plain convolution that pads alike for every size, by itself if it can; then behind a `SamePad`."""
    stride, dilation = (conv.stride[0], conv.stride[1]), (conv.dilation[0], conv.dilation[1])
    reach = ((conv.kernel_size[0] - 1) * dilation[0] + 1, (conv.kernel_size[1] - 1) * dilation[1] + 1)
    sides: list[int] = []  # left, right, top, bottom
    for axis in (1, 0):
        need = max((output.shape[2 + axis] - 1) * stride[axis] + reach[axis] - image.shape[2 + axis], 0)
        sides += [need // 2, need - need // 2]
    if sides[0] == sides[1] and sides[2] == sides[3]:
        yield _plain(conv, stride, dilation, (sides[2], sides[0]))
    else:
        yield nn.Sequential(nn.ZeroPad2d(tuple(sides)), _plain(conv, stride, dilation)).eval()  # type: ignore[arg-type]
    if stride[0] <= reach[0] and stride[1] <= reach[1]:
        yield nn.Sequential(SamePad(stride, reach), _plain(conv, stride, dilation)).eval()


def _plain(
    conv: nn.Conv2d, stride: tuple[int, int], dilation: tuple[int, int], padding: tuple[int, int] = (0, 0)
) -> nn.Conv2d:
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    plain.weight, plain.bias = conv.weight, conv.bias
    return plain.eval()


def _attention(model: nn.Module, inputs: Inputs) -> list[Edit]:
    own = {n: m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    if not own:
        return []
    uses, edits = _uses(model, inputs), []
    for name, old in own.items():
        calls = [_arguments(use) for use in uses.by_module.get(old, [])]
        crossed = {not _alike(key, query) for query, key, _ in calls}
        plain = all(query.dim() == 3 and _alike(value, key) for query, key, value in calls)
        new = from_multihead(old, crossed.pop()) if plain and len(crossed) == 1 else None
        if new is not None:
            edits.append(Edit(kind="attention", new={name: new} | _without_fast_path(model, name)))
    return edits


def _without_fast_path(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """The `nn.TransformerEncoder` around the attention `name`, as one that hands its layers no nested tensors."""
    parents = [name.rsplit(".", up)[0] for up in range(1, name.count(".") + 1)]
    for parent in parents:
        encoder = model.get_submodule(parent)
        if isinstance(encoder, nn.TransformerEncoder):
            plain = copy.copy(encoder)
            plain.use_nested_tensor = False
            return {parent: plain}
    return {}


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether the two are the same values in memory."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _arguments(use: _Use) -> tuple[Tensor, Tensor, Tensor]:
    """query, key and value of a call of `nn.MultiheadAttention`."""
    given = dict(zip(("query", "key", "value"), use.inputs, strict=False)) | use.keywords
    return given["query"], given["key"], given["value"]


def _norms(model: nn.Module, inputs: Inputs) -> list[Edit]:
    """Batch norms whose input is, unchanged, the output of a layer that is called once."""
    names = {module: name for name, module in model.named_modules()}
    if not any(isinstance(module, _NORMS) for module in names):
        return []
    uses, edits = _uses(model, inputs), []
    makers = {}
    for module in names:
        use = uses.only(module)
        if use is not None and use.output is not None and type(module) in _FUSED:
            makers[id(use.output)] = (module, use.output_version)
    for norm in names:
        use = uses.only(norm) if isinstance(norm, _NORMS) else None
        maker, version = makers.get(id(use.inputs[0]), (None, 0)) if use is not None and use.inputs else (None, 0)
        after = _after_norm(norm)
        if maker is None or use is None or after is None or use.versions[0] != version:
            continue
        try:
            fused = _FUSED[type(maker)](maker, norm)
        except (RuntimeError, AssertionError):
            continue  # groups of a transposed convolution, or a norm over another axis: it stays
        edits.append(Edit(kind="batch norm", new={names[maker]: fused, names[norm]: after}))
    return edits


def _norms_forward(model: nn.Module, inputs: Inputs) -> list[Edit]:
    """Batch norms that are left, behind an activation, whose output a layer reads that no border is padded for."""
    names = {module: name for name, module in model.named_modules()}
    left = [module for module in names if type(module) in _NORMS and _after_norm(module) is not None]
    if not left:
        return []
    uses, readers = _uses(model, inputs), defaultdict[int, list[tuple[nn.Module, Tensor | None]]](list)
    for module, calls in uses.by_module.items():
        if not list(module.children()):
            for call_ in calls:
                for given in tensors(call_.inputs)[:1]:
                    readers[id(given)].append((module, call_.output))
    edits = []
    for norm in left:
        use = uses.only(norm)
        output = None if use is None else use.output
        reader = None if output is None else reader_of(output, readers)
        if reader is not None and uses.only(reader) is not None and (made := folded(norm, reader)) is not None:
            edits.append(Edit(kind="batch norm forward", new={names[reader]: made, names[norm]: Pass()}))
    return edits


_FUSED: dict[type[nn.Module], Callable[[Any, Any], nn.Module]] = {
    nn.Conv1d: fuse_conv_bn_eval,
    nn.Conv2d: fuse_conv_bn_eval,
    nn.Conv3d: fuse_conv_bn_eval,
    nn.ConvTranspose2d: lambda conv, norm: fuse_conv_bn_eval(conv, norm, transpose=True),
    nn.Linear: fuse_linear_bn_eval,
}


def _after_norm(norm: nn.Module) -> nn.Module | None:
    """What stays of `norm` once it is folded away; None where it cannot be."""
    if not isinstance(norm, _NORMS) or norm.running_mean is None or norm.training:
        return None
    if type(norm) in _NORMS:
        return Pass()
    act, drop = getattr(norm, "act", None), getattr(norm, "drop", None)  # timm: norm, drop and act in one
    return act if isinstance(act, nn.Module) and isinstance(drop, nn.Module) else None


def _do_nothing(model: nn.Module, inputs: Inputs) -> list[Edit]:
    dead = [n for n, m in model.named_modules() if n and (_is_dropout(m) or type(m).__name__ in _DO_NOTHING)]
    return [Edit(kind="does nothing", new={name: Pass()}) for name in dead]


def _is_dropout(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd)


def _per_use(model: nn.Module, inputs: Inputs) -> list[Edit]:
    uses, edits = _uses(model, inputs), []
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) in _ACTIVATIONS and len(uses.by_module.get(module, [])) > 1:
            function, arguments = _ACTIVATIONS[type(module)]
            new = PerUse(function, **{a: getattr(module, a) for a in arguments}).eval()
            edits.append(Edit(kind="shared activation", new={name: new}))
    return edits


def _drop_passes(model: nn.Module, wanted: _Wanted) -> None:
    """Takes `Pass` modules out of sequences, whose other members keep their names."""
    before = []
    for module in model.modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            kept = {name: child for name, child in module._modules.items() if not isinstance(child, Pass)}
            if len(kept) < len(module._modules):
                before.append((module, dict(module._modules)))
                module._modules = kept
    if before and not wanted.holds(model):
        for module, children in before:
            module._modules = children


def _options(model: nn.Module, signature: ModelSignature, machine: Machine) -> Sequence[str]:
    """Offered where there is something to rewrite."""
    worth = any(
        isinstance(m, (*_NORMS, nn.MultiheadAttention)) or _is_dropout(m) or type(m).__name__ in _DO_NOTHING
        for m in model.modules()
    )
    return ("fused",) if worth else ()


def _apply_clean(model: nn.Module, option: str, stage: str | None, plan: Plan, material: Material) -> nn.Module:
    cleaned, done = _cleaned(material)
    if not done:
        raise TechniqueDidNothing(_NOTHING)
    return copy.deepcopy(cleaned)


_NOTHING = "nothing to rewrite: no batch norm after a layer, no attention, no dropout"


def _idle(material: Material) -> Mapping[tuple[str, str], str]:
    return {} if _cleaned(material)[1] else {("clean", "fused"): _NOTHING}


register(
    Handler(
        decision="clean",
        leave_alone="none",
        technique=lambda option: Technique.LAYER_FUSION,
        options=_options,
        apply=_apply_clean,
        idle=_idle,
    )
)
