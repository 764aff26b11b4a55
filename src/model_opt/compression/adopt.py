"""The user's model as every technique can take it: a copy without what wraps it, with its weights as plain parameters.

Libraries wrap a model (`torch.compile`, `DataParallel`, adapters of PEFT), compute its weights anew at each call
(weight norm, spectral norm, pruning masks), or have saved it before a layer had all of its attributes. None of that is
part of the function that it computes.
"""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from model_opt.errors import InvalidInput, ran_out_of_memory


def adopt(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of `model` on the processor in eval mode, and what was done to it, a sentence each.

    The model itself stays as it is. Raises `InvalidInput` where it cannot be copied.
    """
    inner, said = _unwrapped(model)
    ours = _copied(inner)
    merge: Any = getattr(ours, "merge_and_unload", None)
    if merge is not None:
        ours = merge()
        said.append("the adapter is merged into the model that it was made for")
    _complete(ours)
    if baked := sorted(set(_bake(ours))):
        said.append(f"weights that are computed at each call ({', '.join(baked)}) are computed once, and kept")
    configs = [config for module in ours.modules() if (config := getattr(module, "config", None)) is not None]
    if cached := [config for config in configs if getattr(config, "use_cache", False)]:
        for config in cached:
            config.use_cache = False
        said.append("use_cache is off: a cache that grows from call to call cannot be compiled")
    return ours.eval(), tuple(said)


def _unwrapped(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """What `model` wraps, and whose wrapping it is."""
    said = []
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is not None:
            said.append("the model that torch.compile was given is optimised, and what its figures are compared with")
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
            said.append(f"the model inside {type(model).__name__} is optimised")
        if inner is None:
            return model, said
        model = inner


def _copied(model: nn.Module) -> nn.Module:
    """A copy on the processor. Tensors that a call computed and left in the model are copied without their history."""
    computed = {id(tensor): tensor.detach().clone() for tensor in _held(model) if not tensor.is_leaf}
    try:
        return copy.deepcopy(model, computed).cpu()
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise InvalidInput(
            f"the model cannot be copied ({type(error).__name__}: {error}); copy.deepcopy must work"
        ) from error


def _held(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules keep as plain attributes."""
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _bake(model: nn.Module) -> Iterator[str]:
    """Makes plain parameters, in place, of weights that torch computes by parametrizations or hooks; names those."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            shared = type(module)  # with the user's module, whose weight is gone with this class's property
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            for name, steps in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
                yield from (_named(step) for step in steps)
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        for hook in list[Any](module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
                yield "pruning masks"
            elif isinstance(hook, WeightNorm | SpectralNorm):
                remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
                remove(module, hook.name)
                _forget_loading(module)
                yield _named(hook)


def _forget_loading(module: nn.Module) -> None:
    """Takes off what reads the state of a spectral norm, which torch 2.14 wraps and then does not find."""
    for key, hook in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]


def _named(step: object) -> str:
    """What people call it: "weight norm" for `_WeightNorm`."""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in type(step).__name__.strip("_"))
    return words.strip()


def _complete(model: nn.Module) -> None:
    """Gives layers that an older torch saved the attributes that they had not yet, as they are by default."""
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn.modules."):
            for name, parameter in inspect.signature(type(module).__init__).parameters.items():
                known = parameter.default is not parameter.empty and name in getattr(type(module), "__constants__", ())
                if known and not hasattr(module, name):
                    setattr(module, name, parameter.default)
