"""Structured pruning: whole channels and hidden units go, by the L2 norm of all that belongs to them.

torch-pruning finds which slices of which layers belong together (Fang et al., CVPR 2023). Where a model has layer
norms (transformers, ConvNeXt) the residual stream keeps its width, and the hidden widths of the MLPs and whole
attention heads are pruned. The refit is part of the technique.
"""

import copy
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model_opt.compression.cost import cost, require_cheaper
from model_opt.compression.inputs import Inputs, all_finite, call, shapes, tensors
from model_opt.compression.samples import few, stage_filter
from model_opt.compression.sign_model import attends
from model_opt.compression.stages import WEIGHTED, stages, weighted_layers
from model_opt.compression.technique import Handler, Machine, Material, Technique, register
from model_opt.compression.techniques.clean import ensure, reference
from model_opt.compression.techniques.heads import prune_heads
from model_opt.compression.techniques.refit import KEPT, refit
from model_opt.compression.techniques.time_limit import TookTooLong, at_most
from model_opt.errors import TechniqueError
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

RATIOS = ("0.25", "0.5", "0.7")
PARTING_S = 60.0
"""How long it is looked for the groups that can be pruned, where not all can be."""
GROUP_S = 10.0
"""What a group, or the whole graph of a model, may take to be worked out, which can last for minutes; it is left."""
_HEADS = ("num_heads", "heads", "n_heads", "num_attention_heads")


def prune(
    model: nn.Module,
    ratio: float,
    inputs: Inputs,
    inside: Callable[[str], bool],
    most: int | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Removes about `ratio` of the channels of each group whose layers are `inside`, in place.

    Groups in which more than `most` layers make the same channels are left alone, and where `only` some are named, by
    the first of those layers, all others.
    """
    kept_grad = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(True)
    try:
        graph = _graph(model, inputs)
        groups = _groups(graph, model, inputs, inside, most, only)
        chosen = [(group, _weakest(group, ratio)) for group in groups]
        for group, indices in chosen:
            _remove(graph, group, indices)
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(kept_grad.get(parameter, True)).grad = None


def _graph(model: nn.Module, inputs: Inputs) -> Any:
    import torch_pruning as tp  # takes 1.7 s: it imports timm

    with torch.enable_grad(), warnings.catch_warnings(), at_most(6 * GROUP_S):
        warnings.simplefilter("ignore")  # "unwrapped parameters": groups that hold them are left alone
        return tp.DependencyGraph().build_dependency(model, inputs, forward_fn=call)


def _groups(
    graph: Any,
    model: nn.Module,
    inputs: Inputs,
    inside: Callable[[str], bool],
    most: int | None,
    only: Collection[str] | None,
) -> list[Any]:
    """The groups that may be pruned, as torch-pruning works them out, of those that are `inside` and named."""
    chosen = [found for found in _candidates(graph, model, inputs, most) if found.lies(inside)]
    chosen = [found for found in chosen if only is None or found.makers[0] in only]
    needed = {module for found in chosen for module in found.reached}
    # torch-pruning works out every slice of the graph anew for each group: minutes on shifted windows
    graph.module2node = {module: node for module, node in graph.module2node.items() if module in needed}
    groups = [group for found in chosen if (group := _whole(graph, found.root)) is not None]
    return [group for group in groups if _in_bounds(graph, group)]


def _in_bounds(graph: Any, group: Any) -> bool:
    """Whether every layer has the channels that the group says it has: behind a pixel shuffle, whose channels are fewer
    and made of several, torch-pruning names those before it."""
    for dep, indices in group:
        layer = dep.target.module
        if isinstance(layer, WEIGHTED):
            makes = graph.is_out_channel_pruning_fn(dep.handler)
            width = graph.get_out_channels(layer) if makes else graph.get_in_channels(layer)
            if width is not None and len(indices) and max(indices) >= width:
                return False
    return True


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A group by its `root`: what pruning that touches, and the names of the layers that make its channels."""

    root: nn.Module
    reached: dict[Any, bool]
    makers: tuple[str, ...]

    def lies(self, inside: Callable[[str], bool]) -> bool:
        """Whether most of its layers are `inside`."""
        return sum(map(inside, self.makers)) * 2 > len(self.makers)


def _candidates(graph: Any, model: nn.Module, inputs: Inputs, most: int | None) -> list[_Candidate]:
    """The groups in which nothing must keep its width, with at most `most` makers each."""
    names = {module: name for name, module in model.named_modules()}
    fixed = {m for owner in model.modules() if _owns_heads(owner) for m in owner.modules()} | set(heads(model, inputs))
    seen: set[nn.Module] = set()
    found = []
    for root in graph.module2node:
        if not isinstance(root, _ROOTS) or root in seen or root in fixed:
            continue
        reached = _reach(graph, root)
        makers = [m for m, out in reached.items() if out and isinstance(m, WEIGHTED)]
        seen |= set(makers)
        if most is not None and len(makers) > most:
            continue
        if any(isinstance(m, nn.LayerNorm | nn.Parameter) or (out and m in fixed) for m, out in reached.items()):
            continue
        found.append(_Candidate(root=root, reached=reached, makers=tuple(names[m] for m in makers)))
    return found


def _whole(graph: Any, root: nn.Module) -> Any:
    """The group of all outputs of `root`; None where it cannot be worked out in the time that it may take."""
    handler = graph.get_pruner_of_module(root).prune_out_channels
    try:
        with at_most(GROUP_S):
            return graph.get_pruning_group(root, handler, list(range(graph.get_out_channels(root))))
    except TookTooLong:
        return None


def _reach(graph: Any, root: nn.Module) -> dict[Any, bool]:
    """The modules and parameters that pruning the outputs of `root` touches; True where that prunes their outputs.

    Like torch-pruning's own walk, but without its lists of indices, which take minutes on a shifted window's slices.
    """
    start = (graph.module2node[root], graph.get_pruner_of_module(root).prune_out_channels)
    stack, seen, found = [start], {start}, dict[Any, bool]()
    while stack:
        node, handler = stack.pop()
        found[node.module] = found.get(node.module, False) or graph.is_out_channel_pruning_fn(handler)
        for dep in node.dependencies:
            step = (dep.target, dep.handler)
            if dep.is_triggered_by(handler) and step not in seen:
                seen.add(step)
                stack.append(step)
    return found


_ROOTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


def _owns_heads(module: nn.Module) -> bool:
    """Whether `module` is an attention: it knows a number of heads and holds linears of its own, or looks like one."""
    own = any(isinstance(child, nn.Linear) for child in module.children())
    return (own and any(isinstance(getattr(module, name, None), int) for name in _HEADS)) or attends(module)


def _weakest(group: Any, ratio: float) -> list[int]:
    """Which indices of the group's root go: about `ratio` of them, alike in every channel group."""
    import torch_pruning as tp

    parts = max(_parts(dep.target.module) for dep, _ in group)
    importance = tp.importance.GroupMagnitudeImportance(p=2)(group)
    if importance is None or len(importance) % parts:
        return []
    each = importance.view(parts, -1).mean(0)
    gone = torch.argsort(each, stable=True)[: len(each) - _keep(len(each), ratio, parts)]
    return [int(part * len(each) + i) for part in range(parts) for i in gone]


def _parts(module: object) -> int:
    """In how many equal parts `module` needs its channels: the groups of a convolution or of a group norm."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups < module.out_channels:
        return module.groups
    return 1


def _keep(width: int, ratio: float, parts: int) -> int:
    """How many of a part's `width` channels stay: a multiple of 32 in wide layers, of 8 or 4 in narrow ones."""
    unit = 32 if width >= 256 else 8 if width >= 32 and parts == 1 else 4 if width >= 16 else 1
    return min(width, max(unit, round(width * (1 - ratio) / unit) * unit))


def _remove(graph: Any, group: Any, indices: list[int]) -> None:
    root = group[0].dep
    if not indices:
        return
    real = graph.get_pruning_group(root.target.module, root.handler, indices)
    if not graph.check_pruning_group(real):
        return
    for dep, gone in real:
        layer = dep.target.module
        if isinstance(layer, WEIGHTED) and graph.is_out_channel_pruning_fn(dep.handler):
            width = layer.weight.shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0]
            stay = torch.ones(width, dtype=torch.bool)
            stay[list(gone)] = False
            before: Tensor = getattr(layer, KEPT, torch.arange(width))
            setattr(layer, KEPT, before[stay])
    real.prune()


def heads(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The layers whose outputs reach the model's outputs with no other layer between: they must keep their width.

    Walks the autograd graph back from the outputs up to the first weights on every path.
    """
    owners = {p: m for _, m in weighted_layers(model) for p in m.parameters(recurse=False)}
    with torch.enable_grad():
        outputs = tensors(call(model, inputs))
    stack, visited, found = [t.grad_fn for t in outputs], set(), set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        behind = [f for f, _ in node.next_functions if f is not None]
        leaves = [_leaf(f) for f in behind]
        layers = {owners[leaf] for leaf in leaves if leaf in owners}
        found |= layers
        stack.extend(() if layers else behind)
    return [m for _, m in weighted_layers(model) if m in found]


def _leaf(node: Any) -> Any:
    """The parameter at `node`, seen through a transposition; else None."""
    if not hasattr(node, "variable") and len(node.next_functions) == 1 and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)


def _apply(model: nn.Module, option: str, stage: str | None, plan: Plan, material: Material) -> nn.Module:
    model = ensure(model, material)
    inputs = few(material.example, 2)
    before, shape = cost(model, inputs), shapes_of(model, inputs)
    model = _attempt(model, float(option), inputs, stage_filter(material.teacher, stage), shape)
    require_cheaper(before, cost(model, inputs), f"pruning {option}")
    return model


def _attempt(
    model: nn.Module, ratio: float, inputs: Inputs, inside: Callable[[str], bool], shape: tuple[tuple[int, ...], ...]
) -> nn.Module:
    """A pruned copy of `model` whose outputs have `shape`: of all groups and heads, else, since a model's own code may
    rely on widths of its residual stream, of those groups with at most two makers, else one, else of those that can be
    pruned."""
    attempt = partial(_one_attempt, model, ratio, inputs, inside, shape)
    for most, heads_too in ((None, True), (None, False), (2, False), (1, False)):
        made = attempt(most=most, heads_too=heads_too)
        if isinstance(made, nn.Module):
            return made
    names = sorted({name for found in _of_copy(model, inputs) for name in found.makers[:1]})
    until = time.monotonic() + PARTING_S

    def without_breaking(some: list[str]) -> list[str]:
        """Of groups that cannot be pruned together, those that can be: halves of them at once."""
        half = len(some) // 2
        if not half or time.monotonic() > until:
            return []
        parts = (some[:half], some[half:])
        return [name for part in parts for name in (part if works(part) else without_breaking(part))]

    def works(some: list[str]) -> bool:
        return isinstance(attempt(only=some), nn.Module)

    last = attempt(only=some) if (some := without_breaking(names)) else made
    if isinstance(last, nn.Module):
        return last
    raise TechniqueError(f"pruning {ratio:g} breaks this model: {last}")


def _one_attempt(
    model: nn.Module,
    ratio: float,
    inputs: Inputs,
    inside: Callable[[str], bool],
    shape: tuple[tuple[int, ...], ...],
    *,
    most: int | None = None,
    heads_too: bool = False,
    only: Collection[str] | None = None,
) -> nn.Module | str:
    """The pruned copy, or what breaks."""
    pruned = copy.deepcopy(model)
    try:
        if heads_too:
            prune_heads(pruned, ratio, inside)
        prune(pruned, ratio, inputs, inside, most, only)
        after = shapes_of(pruned, inputs)
    except TookTooLong:
        raise
    except BROKEN as error:
        return str(error)
    return pruned if after == shape else f"the output's shape changes, {shape} → {after}"


def _of_copy(model: nn.Module, inputs: Inputs) -> list[_Candidate]:
    """The groups of a copy of `model`; none where they cannot be found."""
    copied = copy.deepcopy(model).requires_grad_(True)
    try:
        return _candidates(_graph(copied, inputs), copied, inputs, None)
    except BROKEN:
        return []


BROKEN = (RuntimeError, ValueError, AttributeError, KeyError, IndexError, TypeError, AssertionError, TechniqueError)


def shapes_of(model: nn.Module, inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """The shapes of the outputs of `model`; raises `TechniqueError` where an output is not finite."""
    with torch.no_grad():
        outputs = tensors(call(model, inputs))
    if not all_finite(outputs):
        raise TechniqueError("the outputs are not finite")
    return shapes(tuple(outputs))


def _options(model: nn.Module, signature: ModelSignature, machine: Machine) -> Sequence[str]:
    """Offered where at least two layers follow one another, so that a width between them can go."""
    wide = [m for _, m in weighted_layers(model) if isinstance(m, _ROOTS) and m.weight.shape[0] >= 8]
    return RATIOS if len(wide) >= 2 else ()


def _idle(material: Material) -> Mapping[tuple[str, str], str]:
    """Ratios that leave every group as wide as it is, in the whole model and stage by stage: widths are rounded."""
    model, inputs = reference(material), few(material.example, 2)
    if any(_owns_heads(module) for module in model.modules()):
        return {}  # whole heads go there, which is another sum
    model = copy.deepcopy(model)
    try:
        graph = _graph(model.requires_grad_(True), inputs)
        groups = [(found, *_width(graph, found)) for found in _candidates(graph, model, inputs, None)]
    except BROKEN:
        return {}  # applying it says what is wrong
    idle = {}
    for stage in (None, *stages(material.teacher)):
        inside = stage_filter(material.teacher, stage)
        widths = [(width, parts) for found, width, parts in groups if found.lies(inside)]
        where = "prune" if stage is None else f"prune/{stage}"
        for ratio in RATIOS:
            if all(_keep(width, float(ratio), parts) == width for width, parts in widths):
                idle[where, ratio] = "no channels to prune" + (" at this ratio" if widths else "")
    return idle


def _width(graph: Any, found: _Candidate) -> tuple[int, int]:
    """The width of each of a group's parts, and how many parts it has."""
    parts = max(map(_parts, found.reached))
    return graph.get_out_channels(found.root) // parts, parts


register(
    Handler(
        decision="prune",
        leave_alone="0",
        technique=lambda option: Technique.STRUCTURED_PRUNING,
        options=_options,
        apply=_apply,
        idle=_idle,
        after_last=refit,
        ordered=True,
        version=2,
        per_stage=True,
    )
)
