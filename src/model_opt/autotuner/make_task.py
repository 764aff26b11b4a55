"""What the user hands in, checked and brought into the form that the measuring process takes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from model_opt.autotuner.constraints import Constraints
from model_opt.autotuner.data import LABELS, Data, opened, read, training
from model_opt.compression.adopt import adopt
from model_opt.compression.evaluation.evaluator import Task
from model_opt.compression.evaluation.judge import EvalFn, JudgeAs
from model_opt.compression.inputs import (
    UNWILLING,
    Inputs,
    answers,
    batch_size,
    by_row,
    call,
    holds_list,
    map_tensors,
    output,
    plain,
    rows,
    shapes,
    sizes,
    tensors,
    with_copies,
)
from model_opt.compression.interface import SAME_DB, Interface, lengths, look
from model_opt.compression.keep_state import put_back_state
from model_opt.compression.machine import usable_processors
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.errors import InvalidInput, UnknownName

NOISE_ROWS, NOISE_BATCHES = 64, 8
NOISE = "fidelity (noise)"
"""What a task is judged on that has no data."""
_EXAMPLE_ROWS = 8
USUAL_SHAPES = ((3, 224, 224), (3, 32, 32), (1, 28, 28), (3, 299, 299), (1, 32, 32), (1, 8, 8), (3, 64, 64))


def make_task(
    model: nn.Module,
    *,
    example_input: Inputs | None,
    calibration_data: Iterable[Any] | None,
    eval_fn: EvalFn | None,
    train_data: Iterable[Any] | None,
    constraints: Constraints,
    seed: int,
    judge_as: JudgeAs = None,
    fallback: str | None = None,
    device: str = "cpu",
    timing_lock: Any = None,
) -> Task:
    """The task for a measuring process. Raises `InvalidInput`, with the argument to mend, before anything is started.

    The model is copied; the user's own is never touched. What clearly breaks one of `constraints` on size or speed is
    not measured whole.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if eval_fn is not None and not callable(eval_fn):
        raise InvalidInput(f"eval_fn must take a model and return its accuracy, not be a {type(eval_fn).__name__}")
    if fallback not in (None, "original"):
        raise UnknownName("fallback", fallback, ["original"])
    ours, said = adopt(model)
    example = _inputs(example_input)
    pairs, given = (None, calibration_data) if train_data is None else training(train_data, calibration_data, seed)
    first, items = (None, None) if given is None else opened(given, example, seed)
    if example is None:
        example = _guess_example(ours) if first is None else rows(first, 0, _EXAMPLE_ROWS)
    example, labels_out = _without_labels(ours, example)
    changes = _check_forward(ours, example)
    state = _STATE if put_back_state(ours, example) else ""
    interface = look(ours, example)
    data = _data(items, example, interface, seed)
    if items is not None and example_input is None and not data.whole:
        example = rows(data.inputs[0], 0, batch_size(example) if interface.fixed else _EXAMPLE_ROWS)
    _check_sizes(ours, data, example)
    interface = replace(interface, lengths=lengths([example, *data.sizes()]))
    fit, judging = data.halves(seed) if pairs is None else data.beside(pairs, example)
    return Task(
        model=ours,
        example=example,
        interface=interface,
        fit=fit,
        sizes=data.sizes() if interface.lengths else (),
        held_out=judging.batches(),
        labels=judging.label_batches(),
        judged_on=NOISE if items is None else "fidelity",
        judge_as=judge_as,
        targets=data.targets,
        eval_fn=eval_fn,
        fallback=fallback is not None,
        train_data=pairs,
        objective=constraints.objective,
        threads=min(torch.get_num_threads(), usable_processors()),
        seed=seed,
        device=device,
        warnings=tuple(filter(None, [*said, labels_out, changes, state, *judging.warnings])),
        timing_lock=timing_lock,
    )


_STATE = (
    "the model keeps something from call to call: it is put back as it was before each call, here and in what is "
    "handed back"
)


def _inputs(example: Inputs | list[Any] | None) -> Inputs | None:
    """What the user hands in: a list is the one argument of models that take lists (of images)."""
    if isinstance(example, list):
        return (example,)
    return None if example is None else plain(example)


def _data(items: Iterator[Any] | None, example: Inputs, interface: Interface, seed: int) -> Data:
    """The user's data, or noise where there is none, in batches that the model takes."""
    if items is None and interface.coupled and holds_list(example):
        batches = [_noise(example, seed + number, _own_shape) for number in range(NOISE_BATCHES)]
        data = Data(inputs=batches, labels=None, whole=True)
    elif items is None:
        data = Data(inputs=[_noise(example, seed, _many_rows)], labels=None, whole=False)
    else:
        data = read(items, example, seed, whole=interface.coupled)
    return replace(data, batch=batch_size(example), full=True) if interface.fixed and not data.whole else data


def _without_labels(model: nn.Module, example: Inputs) -> tuple[Inputs, str]:
    """`example` without labels, where the model only computes a loss of them, and what is said of that."""
    found = [key for key in LABELS if isinstance(example, Mapping) and key in example]
    if not found or not isinstance(example, Mapping):
        return example, ""
    fewer = {key: value for key, value in example.items() if key not in found}
    try:
        with_them, without = answers(model, example), answers(model, fewer)
    except UNWILLING:
        return example, ""
    rest = [tensor for tensor in with_them if tensor.dim()]
    if len(rest) != len(without) or len(rest) == len(with_them) or signal_to_noise_db(rest, without) < SAME_DB:
        return example, ""
    return fewer, f"{found[0]} are no input: the model computes a loss of them, which nothing else follows"


def _check_sizes(model: nn.Module, data: Data, example: Inputs) -> None:
    """Raises `InvalidInput` where data has rows of a size that the model does not take."""
    for batch in data.sizes():
        if [shape[1:] for shape in shapes(batch)] != [shape[1:] for shape in shapes(example)]:
            try:
                answers(model, batch)
            except UNWILLING as error:
                raise InvalidInput(
                    f"calibration_data has a batch of {sizes(shapes(batch))}, example_input is "
                    f"{sizes(shapes(example))}, and the model raised {type(error).__name__} on the former: {error}. "
                    "Give calibration_data that it takes"
                ) from error


def _guess_example(model: nn.Module) -> Inputs:
    """A noise input of the first usual shape that the model takes."""
    for shape in USUAL_SHAPES:
        try:
            with torch.inference_mode():
                model(torch.zeros(1, *shape))
        except Exception:
            continue
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    raise InvalidInput(
        f"the model takes none of the usual inputs ({sizes(USUAL_SHAPES)}): give example_input= (in a file: the "
        "function returns {'model': …, 'example_input': …})"
    )


def _check_forward(model: nn.Module, example: Inputs) -> str:
    """Calls `model` on `example`, which stays as it is; what the user should know of that, or "". From then on a model
    that changes its inputs in place is given copies."""
    if not isinstance(example, Tensor | tuple | Mapping) or not tensors(example):
        raise InvalidInput(
            f"example_input must hold a tensor: a tensor, a tuple or a mapping, not {type(example).__name__}"
        )
    if not any(tensor.dim() for tensor in tensors(example)):
        raise InvalidInput("example_input holds numbers only: the first axis of its first tensor is the batch")
    given = map_tensors(Tensor.clone, example)
    try:
        with torch.inference_mode():
            made = output(call(model, given))
    except InvalidInput:
        raise
    except Exception as error:
        where = sizes(shapes(example))
        raise InvalidInput(
            f"the model raised {type(error).__name__} on example_input ({where}): {error}. Give an example_input= that "
            "the model takes, batch first"
        ) from error
    if not torch.isfinite(made.float()).all():
        raise InvalidInput(
            "the model's output on example_input is not finite (NaN or infinity): nothing can be compared"
        )
    if all(torch.equal(a, b) for a, b in zip(tensors(given), tensors(example), strict=True)):
        return ""
    model.register_forward_pre_hook(with_copies, with_kwargs=True)
    return "the model changes its inputs in place: it is given copies, here and in what is handed back"


def _noise(example: Inputs, seed: int, shape_of: Callable[[Tensor], tuple[int, ...]]) -> Inputs:
    """Rows like the example's: floats normal with its mean and spread, integers drawn from its values."""
    generator = torch.Generator().manual_seed(seed)

    def like(tensor: Tensor) -> Tensor:
        shape = shape_of(tensor)
        if tensor.is_floating_point():
            spread = tensor.float().std() if tensor.numel() > 1 else torch.tensor(1.0)
            return (torch.randn(shape, generator=generator) * spread.clamp_min(1e-3) + tensor.float().mean()).to(tensor)
        chosen = torch.randint(tensor.numel(), (int(torch.tensor(shape).prod()),), generator=generator)
        return tensor.reshape(-1)[chosen].reshape(shape)

    return by_row(like, example)


def _many_rows(tensor: Tensor) -> tuple[int, ...]:
    return (NOISE_ROWS, *tensor.shape[1:])


def _own_shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def set_threads(threads: int) -> None:
    """Threads that this process, and what it starts, measures with."""
    torch.set_num_threads(threads)
