"""How a model is called: inputs and outputs as flat tensors, and back into the structure that the user knows.

Exporters and runtimes see positional tensors in and a tuple of tensors out, whatever the user's model takes and
returns (a tensor, a tuple, a mapping, a dataclass that torch's pytree knows).
"""

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from model_opt.compression.inputs import UNWILLING, Inputs, batch_size, map_tensors, positional, tensors
from model_opt.compression.widen import computed_in
from model_opt.errors import InvalidInput, TechniqueError

Range = tuple[int, int]
"""The least and the largest value that an input of whole numbers may hold."""


@dataclass(frozen=True, kw_only=True)
class Calling:
    """How a model was called: its `parameters` by position, the `defaults` of those that have one, how many arguments
    came by position, and the `keywords` of the others, sorted."""

    parameters: tuple[str, ...]
    defaults: Mapping[str, Any]
    positions: int
    keywords: tuple[str, ...]

    def arranged(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call's arguments as they came then: by name what came by name, without what is the default. Raises
        `InvalidInput`, with the argument's name, where that cannot be."""
        if max(self.positions, len(args)) > len(self.parameters):
            return args, dict(kwargs)
        given = dict(zip(self.parameters, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise InvalidInput(f"{min(twice)} is given by place and by name")
        given |= kwargs
        wanted = (*self.parameters[: self.positions], *self.keywords)
        if missing := [name for name in wanted if name not in given and name not in self.defaults]:
            raise InvalidInput(f"{missing[0]} is missing: the model takes {', '.join(wanted)}")
        for name in given.keys() - set(wanted):
            if name not in self.defaults or not _equal(given[name], self.defaults[name]):
                raise InvalidInput(
                    f"{name} is {_brief(given[name])}; the optimised model was made without it: what it is then is "
                    "built in"
                )
        found = {**self.defaults, **given}
        return tuple(found[n] for n in self.parameters[: self.positions]), {n: found[n] for n in self.keywords}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The structure of one model's call. `*_constants` hold the leaves that are no tensors, by position.

    `names` are those of the input's leaves, for errors. Of each input tensor `dtypes` says the type, `batched` whether
    its first axis is the batch, and `ranges` what it may hold, where that is not everything; `batch` is the example's.
    Where rows are `coupled` the answer for one depends on the others that it comes with: a batch can be neither split
    nor padded.
    """

    calling: Calling
    inputs: pytree.TreeSpec
    input_constants: Mapping[int, Any]
    outputs: pytree.TreeSpec
    output_constants: Mapping[int, Any]
    output_dtypes: tuple[torch.dtype, ...]
    names: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    batched: tuple[bool, ...]
    batch: int
    coupled: bool
    ranges: tuple[Range | None, ...]
    lengths: tuple[Mapping[int, Range], ...] = ()
    """Of each input tensor, the axes whose length may vary, and between what; nothing where none may."""
    refuses_nan: bool = False
    """Whether NaN is refused, for what was compiled would make numbers of it."""

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call, in the types that the model takes. Raises `InvalidInput`, with the argument's name,
        for what the model was not made for: another structure, shape or constant, or values that its type cannot hold.
        """
        if self._one_input and not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
            tensors = [args[0]]
        else:
            leaves, spec = _flatten(args, kwargs)
            if spec != self.inputs:
                leaves, spec = _flatten(*self.calling.arranged(args, kwargs))
            if spec != self.inputs:
                raise InvalidInput(
                    f"the arguments are not built as the example's, of {len(self.shapes)} tensors: the model takes "
                    + ", ".join(self.names)
                )
            self._check_constants(leaves)
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        checked = zip(tensors, self.tensor_names, self.shapes, self.dtypes, self.batched, self.varying, strict=True)
        fitting = [_fitting(*one) for one in checked]
        for tensor, name, range_ in zip(fitting, self.tensor_names, self.ranges, strict=True):
            if range_ is not None and tensor.numel():
                _check_range(tensor, name, range_)
            if self.refuses_nan and tensor.is_floating_point():
                _check_nan(tensor, name)
        return fitting

    def _check_constants(self, leaves: Sequence[Any]) -> None:
        """Raises `InvalidInput` for another number or flag than the example's, or a tensor where there was none."""
        for place, (leaf, name) in enumerate(zip(leaves, self.names, strict=True)):
            if place not in self.input_constants:
                if not isinstance(leaf, Tensor):
                    raise InvalidInput(f"{name} is {_brief(leaf)}; the optimised model takes a tensor")
            elif not _equal(leaf, made_for := self.input_constants[place]):
                raise InvalidInput(
                    f"{name} is {_brief(leaf)}; the optimised model was made for {_brief(made_for)}, which is built "
                    "in: it does not follow other values"
                )

    @cached_property
    def first_batched(self) -> int | None:
        """The first input tensor that has the batch, None where none has."""
        return self.batched.index(True) if True in self.batched else None

    @cached_property
    def varying(self) -> tuple[Mapping[int, Range], ...]:
        """`lengths`, and of a model of which none varies as many empty ones."""
        return self.lengths or ({},) * len(self.shapes)

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """What an error calls each input tensor."""
        return tuple(name for place, name in enumerate(self.names) if place not in self.input_constants)

    @cached_property
    def _one_input(self) -> bool:
        """Whether the model takes one tensor by position: a tree is then walked for nothing, on every call."""
        return bool(self.inputs == _flatten((0,), {})[1]) and len(self.shapes) == 1

    @cached_property
    def _one_output(self) -> bool:
        return self.outputs.is_leaf() and len(self.output_dtypes) == 1

    def takes(self) -> tuple[str, ...]:
        """What a call takes, for people: an argument a line, with its type and shape, or its value that is built in."""
        free = "batch" if not self.coupled else str(self.batch)
        tensors = iter(zip(self.dtypes, self.shapes, self.batched, self.ranges, self.varying, strict=True))
        said = []
        for place, name in enumerate(self.names):
            if place in self.input_constants:
                said.append(f"{name}: {self.input_constants[place]!r}, built in")
                continue
            dtype, shape, batched, allowed, lengths = next(tensors)
            known = [f"{lengths[at][0]} to {lengths[at][1]}" if at in lengths else str(n) for at, n in enumerate(shape)]
            sizes = ", ".join([free, *known[1:]] if batched else known)
            limits = f", {allowed[0]} to {allowed[1]}" if allowed else ""
            said.append(f"{name}: {str(dtype).removeprefix('torch.')} [{sizes}]{limits}")
        return tuple(said)

    def call_arguments(self, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of the original call, with `tensors` in their places."""
        args, kwargs = _fill(self.inputs, self.input_constants, tensors)
        return args, kwargs

    def rebuild(self, tensors: list[Tensor]) -> Any:
        """The original output's structure around `tensors`."""
        if self._one_output:
            return tensors[0]
        return _fill(self.outputs, self.output_constants, tensors)


class Flat(nn.Module):
    """`model` as a function of positional tensors that returns a tuple of tensors."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs' tensors, in order."""
        args, kwargs = self.layout.call_arguments(list(tensors))
        leaves = pytree.tree_leaves(self.model(*args, **kwargs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def layout_of(
    model: nn.Module,
    example: Inputs,
    *,
    coupled: bool = False,
    ranges: tuple[Range | None, ...] = (),
    lengths: tuple[Mapping[int, Range], ...] = (),
) -> Layout:
    """Calls `model` on `example` and notes the structures; `ranges` and `lengths` are in the order of
    `tensors(example)`.

    Where rows are coupled and some inputs are whole numbers, which may be places of rows, the example's shapes are the
    only ones. Raises `InvalidInput` if no tensor comes out, and `TechniqueError` where something else does that follows
    the input: a fixed program could only repeat it.
    """
    args, kwargs = positional(example)
    leaves, spec = _flatten(args, kwargs)
    with torch.no_grad():
        found, out_spec = pytree.tree_flatten(model(*args, **kwargs))
    ins = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    outs = [leaf for leaf in found if isinstance(leaf, Tensor)]
    if not ins or not outs:
        raise InvalidInput("a model that takes or returns no tensor cannot be optimised")
    _refuse_what_follows(model, example, found)
    batch, places = batch_size(example), places_of(example)
    fixed = coupled and not all(tensor.is_floating_point() or tensor.dtype is torch.bool for tensor in ins)
    calling = _calling(model, args, kwargs)
    return Layout(
        calling=calling,
        inputs=spec,
        input_constants=_constants(leaves),
        outputs=out_spec,
        output_constants=_constants(found),
        output_dtypes=tuple(tensor.dtype for tensor in outs),
        names=_names(calling.parameters, args, kwargs),
        dtypes=tuple(computed_in(model, tensor.dtype) for tensor in ins),
        shapes=tuple(tuple(tensor.shape) for tensor in ins),
        batched=tuple(not fixed and tensor.dim() > 0 and int(tensor.shape[0]) == batch for tensor in ins),
        batch=batch,
        coupled=coupled,
        ranges=tuple(ranges[place] for place in places) if ranges else (None,) * len(ins),
        lengths=tuple(lengths[place] for place in places) if lengths else (),
    )


def places_of(example: Inputs) -> list[int]:
    """For each input tensor of a layout, its place among `tensors(example)`: keywords are sorted in the former."""
    known = list(enumerate(tensors(example)))
    leaves, _ = _flatten(*positional(example))
    found = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            at = next(number for number, (_, one) in enumerate(known) if one is leaf)
            found.append(known.pop(at)[0])
    return found


def _fitting(
    tensor: Tensor,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    batched: bool,
    lengths: Mapping[int, Range],
) -> Tensor:
    """`tensor` in `dtype`; raises `InvalidInput` where it has another shape, or values that `dtype` cannot hold."""
    if tensor.layout != torch.strided:
        raise InvalidInput(f"{name} is {tensor.layout}; the optimised model takes dense tensors: .to_dense() makes one")
    got = tuple(tensor.shape)
    if lengths and len(got) == len(shape):
        for axis, (least, most) in lengths.items():
            if not least <= got[axis] <= most:
                raise InvalidInput(
                    f"{name} has shape {got}; the optimised model takes {least} to {most} along axis {axis}, as the "
                    "calibration data has it"
                )
        shape = tuple(got[axis] if axis in lengths else length for axis, length in enumerate(shape))
    if got[batched:] != shape[batched:] or len(got) != len(shape):
        wanted = ("batch", *shape[1:]) if batched else shape
        raise InvalidInput(f"{name} has shape {got}; the optimised model takes {wanted}")
    if tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not torch.equal(cast.to(tensor.dtype), tensor):
        raise InvalidInput(
            f"{name} is {tensor.dtype}; the optimised model takes {dtype}, which cannot hold its values exactly: "
            f"convert it with .to({dtype}) if that is meant"
        )
    return cast


def _check_range(tensor: Tensor, name: str, allowed: Range) -> None:
    """Raises `InvalidInput` for values outside of `allowed`: what they point at is not there."""
    low, high = (int(one) for one in tensor.aminmax())
    if low < allowed[0] or high > allowed[1]:
        raise InvalidInput(f"{name} holds {low} to {high}; the model takes {allowed[0]} to {allowed[1]}")


def _check_nan(tensor: Tensor, name: str) -> None:
    """Raises `InvalidInput` for NaN. A sum is told in a tenth of the time, and is NaN for infinities, too."""
    if math.isnan(tensor.sum().item()) and bool(torch.isnan(tensor).any()):
        raise InvalidInput(f"{name} holds NaN, of which the optimised model would make numbers")


def _refuse_what_follows(model: nn.Module, example: Inputs, found: Sequence[Any]) -> None:
    """Raises `TechniqueError` for a leaf of the output, beside tensors, that another input changes."""
    before = _beside_tensors(found)
    if all(leaf is None for leaf in before):
        return
    for factor in _FACTORS:
        args, kwargs = positional(map_tensors(partial(_other_values, factor=factor), example))
        try:
            with torch.no_grad():
                after = _beside_tensors(pytree.tree_leaves(model(*args, **kwargs)))
        except UNWILLING:
            after = []  # whether it follows cannot be told
        changed = next((a for a, b in itertools.zip_longest(before, after) if not _equal(a, b)), None)
        if changed is not None:
            raise TechniqueError(
                f"the model also returns a {type(changed).__name__}, which is no tensor and follows the input: only "
                "torch can make it. Return its tensors in place of it"
            )


_FACTORS = (1.37, -1.0, 0.0)


def _beside_tensors(leaves: Sequence[Any]) -> list[Any]:
    return [leaf for leaf in leaves if not isinstance(leaf, Tensor)]


def _other_values(tensor: Tensor, factor: float) -> Tensor:
    """Values of `tensor` in other places, floats times `factor`, so that neither their sum nor their order stays."""
    if not tensor.numel():
        return tensor
    places = torch.randint(
        tensor.numel(), (tensor.numel(),), generator=torch.Generator().manual_seed(round(factor) + 1)
    )
    made = tensor.flatten()[places.to(tensor.device)].reshape(tensor.shape)
    return factor * made if made.is_floating_point() else made


def _equal(one: Any, other: Any) -> bool:
    """Whether two constants are the same for certain; what cannot be compared is not."""
    try:
        return one is other or (type(one) is type(other) and bool(one == other))
    except (RuntimeError, TypeError, ValueError):
        return False


def _calling(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Calling:
    parameters = inspect.signature(model.forward).parameters.items()
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return Calling(
        parameters=tuple(name for name, parameter in parameters if parameter.kind in by_place),
        defaults={name: p.default for name, p in parameters if isinstance(p.default, _PLAIN)},
        positions=len(args),
        keywords=tuple(sorted(kwargs)),
    )


_PLAIN = bool | int | float | str | None


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _names(known: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """What an error calls each leaf of the input: the argument's name, and where it is inside."""
    tops = [known[place] if place < len(known) else f"argument {place + 1}" for place in range(len(args))]
    tops += sorted(kwargs)
    found = []
    for name, value in zip(tops, [*args, *(kwargs[key] for key in sorted(kwargs))], strict=True):
        inside, _ = pytree.tree_flatten_with_path(value)
        found += [name + pytree.keystr(path) for path, _ in inside]
    return tuple(found)


def _flatten(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    return pytree.tree_flatten((tuple(args), dict(sorted(kwargs.items()))))


def _constants(leaves: list[Any]) -> dict[int, Any]:
    return {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}


def _fill(spec: pytree.TreeSpec, constants: Mapping[int, Any], tensors: list[Tensor]) -> Any:
    rest = iter(tensors)
    leaves = [constants[i] if i in constants else next(rest) for i in range(spec.num_leaves)]
    return pytree.tree_unflatten(leaves, spec)
