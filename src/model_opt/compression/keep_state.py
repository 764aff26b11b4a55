"""Models that keep something from one call to the next: put back as it was, so that an answer follows its input."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from model_opt.compression.inputs import Inputs, answers
from model_opt.compression.interface import SAME_DB, another
from model_opt.compression.signal_to_noise import signal_to_noise_db

State = dict[str, dict[str, Any]]
"""Module → attribute → what it holds."""


def put_back_state(model: nn.Module, example: Inputs) -> bool:
    """Whether calls of `model` leave something behind that changes the answers to come. It is then put back after each
    of them, as it was before the first one, in place."""
    before = _state(model)
    first, other = answers(model, example), another(model, example)
    if not _changed(before, model):
        return False
    again = answers(model, example)
    hook = PutBack(_changed(before, model))
    hook.restore(model)
    if _alike(first, again):
        return False
    handles = [model.register_forward_pre_hook(hook.hand_out), model.register_forward_hook(hook.take_back)]
    fresh = answers(model, example)
    answers(model, other)
    if _alike(fresh, answers(model, example)):
        return True
    for handle in handles:  # dropout, or noise: something else than what it keeps
        handle.remove()
    return False


class PutBack:
    """Hooks that give each call the state that the model had at first, and put that back behind it. They pickle."""

    def __init__(self, state: State) -> None:
        self._state = state

    def hand_out(self, model: nn.Module, args: Any) -> None:
        """Before a call: copies, for a call may change them in place."""
        for module, name, value in self._places(model):
            _set(module, name, _copied(value, _device(model)))

    def take_back(self, model: nn.Module, args: Any, output: Any) -> None:
        """After a call."""
        self.restore(model)

    def restore(self, model: nn.Module) -> None:
        """The state itself."""
        for module, name, value in self._places(model):
            _set(module, name, value)

    def _places(self, model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
        modules = dict(model.named_modules())
        return [
            (modules[place], name, value)
            for place, values in self._state.items()
            if place in modules
            for name, value in values.items()
        ]


def _state(model: nn.Module) -> State:
    """Copies of all that a call could change: buffers, and attributes that are tensors, numbers or made of them."""
    return {
        place: {name: _copied(value) for name, value in _attributes(module).items()}
        for place, module in model.named_modules()
    }


def _attributes(module: nn.Module) -> dict[str, Any]:
    plain = {
        name: value
        for name, value in vars(module).items()
        if name not in _TORCHS and all(isinstance(leaf, _VALUES) for leaf in pytree.tree_leaves(value))
    }
    return {**plain, **module._buffers}


_VALUES = Tensor | int | float | str | None
_TORCHS = frozenset(vars(nn.Module()))


def _changed(before: State, model: nn.Module) -> State:
    """What of `before` is another now, as it was before."""
    found: State = {}
    for place, module in model.named_modules():
        now, then = _attributes(module), before.get(place, {})
        other = {name: then[name] for name in then if name not in now or not _equal(then[name], now[name])}
        if other:
            found[place] = other
    return found


def _equal(one: Any, other: Any) -> bool:
    ones, others = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(ones) == len(others) and all(
        _same_tensor(a, b) if isinstance(a, Tensor) else type(a) is type(b) and a == b
        for a, b in itertools.zip_longest(ones, others)
    )


def _same_tensor(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)


def _copied(value: Any, device: torch.device | None = None) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to(device or tensor.device).clone(), value)


def _set(module: nn.Module, name: str, value: Any) -> None:
    if name in module._buffers:
        module._buffers[name] = value
    else:
        vars(module)[name] = value


def _device(model: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in model.parameters()), None)


def _alike(one: list[Tensor], other: list[Tensor]) -> bool:
    return signal_to_noise_db(one, other) >= SAME_DB
