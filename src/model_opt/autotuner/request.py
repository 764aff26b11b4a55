"""What the user hands in, checked and brought into the form that the measuring process takes."""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from model_opt.autotuner.constraints import Constraints
from model_opt.compression.evaluate import Task
from model_opt.compression.inputs import (
    Inputs,
    batch_size,
    call,
    constants,
    join,
    map_tensors,
    output,
    rows,
    shapes,
    tensors,
    with_copies,
)
from model_opt.compression.machine import usable_processors
from model_opt.compression.shipping import size_bytes
from model_opt.errors import InvalidInput

MOST_ROWS = 1024
READ_S = 60.0
"""How long calibration data is read for: rows are drawn from all of it, or from what comes in this time."""
FIT_ROWS = MOST_ROWS // 2
"""Rows of `train_data` that techniques are fitted on: as many as half of the most calibration data."""
NOISE_ROWS = 64
NOISE = "fidelity (noise)"
"""What a task is judged on that has no data."""
BATCH_ROWS = 32
USUAL_SHAPES = ((3, 224, 224), (3, 32, 32), (1, 28, 28), (3, 299, 299), (1, 32, 32), (1, 8, 8), (3, 64, 64))


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rows to calibrate on: one batch of inputs, and their class indices `[rows]` if there are any. `warning` says what
    was not looked at."""

    inputs: Inputs
    labels: Tensor | None
    warning: str = ""


def make_task(
    model: nn.Module,
    *,
    example_input: Inputs | None,
    calibration_data: Iterable[Any] | None,
    eval_fn: Callable[[nn.Module], float | Mapping[str, float]] | None,
    train_data: Iterable[Any] | None,
    constraints: Constraints,
    seed: int,
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
    ours = _copied(model)
    pairs = None if train_data is None else list(_iterate(train_data, "train_data"))
    data = _read_data(calibration_data if calibration_data is not None else pairs, example_input, seed)
    example = example_input
    if example is None:
        example = _example_from(data) if data else _guess_example(ours)
    changes = _check_forward(ours, example)
    source = "fidelity"
    if data is None:
        data, source = Data(inputs=_noise(example, seed), labels=None), NOISE
    if pairs and calibration_data is not None:  # then all calibration data judges
        fit = _inputs_of(pairs, example, seed)
        held_out, labels = _judged(data, torch.arange(batch_size(data.inputs)))
    else:
        fit, held_out, labels = _split(data, seed)
    return Task(
        model=ours,
        example=example,
        fit=fit,
        held_out=held_out,
        labels=labels,
        judged_on=source,
        eval_fn=eval_fn,
        train_data=pairs,
        accuracy_limit=constraints.max_accuracy_drop,
        least=constraints.least(size_mb=size_bytes(ours) / 1e6 if constraints.max_size_mb else None),
        most_latency_ms=constraints.max_latency_ms,
        threads=min(torch.get_num_threads(), usable_processors()),
        seed=seed,
        device=device,
        warnings=tuple(filter(None, [changes, data.warning])),
        timing_lock=timing_lock,
    )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).cpu().eval()
    except Exception as error:
        raise InvalidInput(
            f"the model cannot be copied ({type(error).__name__}: {error}); copy.deepcopy must work"
        ) from (error)


def _read_data(given: Iterable[Any] | None, example: Inputs | None, seed: int) -> Data | None:
    """`MOST_ROWS` rows at random from all of `given`, whose items are batches of inputs, or single rows, or pairs of
    inputs and class indices as data loaders yield them: data may be sorted."""
    if given is None:
        return None
    if isinstance(given, Tensor):
        given = [given]
    drawn, usual, others = _Drawn(seed), None if example is None else constants(example), 0
    until, warning = time.monotonic() + READ_S, ""
    for position, item in enumerate(_iterate(_anywhere(given, seed), "calibration_data")):
        inputs, labels = _read_item(item, example, f"item {position} of calibration_data")
        usual = constants(inputs) if usual is None else usual
        if constants(inputs) == usual:
            drawn.add(inputs, labels)
        else:
            others += 1
        if time.monotonic() > until:
            warning = f"calibration_data was read for {READ_S:g} s: its first {drawn.seen} rows are all that is known"
            break
    if others:
        warning = (
            f"{others} items of calibration_data give other values than {usual} for what is no tensor: they are left "
            "out, and what is compiled refuses them"
        )
    if not drawn.seen:
        raise InvalidInput("calibration_data is empty: give it at least one batch of inputs, or leave it out")
    return drawn.data(warning)


def _anywhere(given: Iterable[Any], seed: int) -> Iterable[Any]:
    """`given`, or of a data set that is read in order, whose items may take long each, some from all over."""
    dataset: Any = given.dataset if isinstance(given, DataLoader) else given
    if isinstance(dataset, list | tuple | Mapping | IterableDataset) or not hasattr(dataset, "__getitem__"):
        return given
    if not hasattr(dataset, "__len__") or len(dataset) <= MOST_ROWS:
        return given
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:MOST_ROWS].tolist()
    if not isinstance(given, DataLoader):
        return (dataset[place] for place in chosen)
    if type(given.sampler) is not SequentialSampler or given.batch_size is None:
        return given  # it draws from all over, or in an order of the user's
    return DataLoader(dataset, batch_size=given.batch_size, sampler=chosen, collate_fn=given.collate_fn)


class _Drawn:
    """Rows of a stream, each of all that came as likely to be kept as any other: those with the least random keys."""

    def __init__(self, seed: int) -> None:
        self.seen = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: list[tuple[Inputs, Tensor | None, Tensor]] = []
        self._held = 0

    def add(self, inputs: Inputs, labels: Tensor | None) -> None:
        """Takes a batch in."""
        count = batch_size(inputs)
        self._kept.append((inputs, labels, torch.rand(count, generator=self._generator, dtype=torch.float64)))
        self.seen, self._held = self.seen + count, self._held + count
        if self._held > 4 * MOST_ROWS:
            self._thin()

    def _thin(self) -> None:
        """Keeps the `MOST_ROWS` rows of the least keys, in their order."""
        keys = torch.cat([keys for _, _, keys in self._kept])
        if len(keys) <= MOST_ROWS:
            return
        most = keys.kthvalue(MOST_ROWS).values
        thinner = []
        for inputs, labels, batch_keys in self._kept:
            stay = batch_keys <= most
            if stay.any():
                chosen = map_tensors(lambda tensor, stay=stay: tensor[stay], inputs)  # type: ignore[misc]
                thinner.append((chosen, None if labels is None else labels[stay], batch_keys[stay]))
        self._kept, self._held = thinner, min(self._held, MOST_ROWS)

    def data(self, warning: str) -> Data:
        """What was drawn, in the order in which it came. Raises `InvalidInput` where only some items had labels."""
        self._thin()
        labels = [labels for _, labels, _ in self._kept if labels is not None]
        if labels and len(labels) != len(self._kept):
            raise InvalidInput("calibration_data has labels for some items and not for others")
        inputs = join([inputs for inputs, _, _ in self._kept])
        return Data(inputs=inputs, labels=torch.cat(labels) if labels else None, warning=warning)


def _iterate(given: Iterable[Any], name: str) -> Iterator[Any]:
    try:
        iterator = iter(given)
    except TypeError as error:
        raise InvalidInput(f"{name} must be an iterable of inputs, not {type(given).__name__}") from error
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise InvalidInput(f"{name} raised {type(error).__name__} while it was read: {error}") from error


def _read_item(item: Any, example: Inputs | None, name: str) -> tuple[Inputs, Tensor | None]:
    label = None
    if isinstance(item, list | tuple) and len(item) == 2 and _is_label(item[1]) and not isinstance(example, tuple):
        item, label = item[0], torch.as_tensor(item[1]).reshape(-1).long()
    if isinstance(item, list):
        item = tuple(item)
    if not isinstance(item, Tensor | tuple | Mapping) or not tensors(item):
        raise InvalidInput(f"{name} holds no tensor: {type(item).__name__}")
    made: Inputs = item
    if example is not None and tensors(made)[0].ndim == tensors(example)[0].ndim - 1:
        made = map_tensors(lambda tensor: tensor.unsqueeze(0), made)
    if label is not None and len(label) != batch_size(made):
        raise InvalidInput(f"{name}: {len(label)} labels for {batch_size(made)} inputs")
    return made, label


def _is_label(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return True
    return isinstance(value, Tensor) and value.ndim <= 1 and not value.is_floating_point()


def _example_from(data: Data) -> Inputs:
    return rows(data.inputs, 0, min(8, batch_size(data.inputs)))


def _guess_example(model: nn.Module) -> Inputs:
    """A noise input of the first usual shape that the model takes."""
    for shape in USUAL_SHAPES:
        try:
            with torch.inference_mode():
                model(torch.zeros(1, *shape))
        except Exception:
            continue
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    tried = ", ".join("x".join(map(str, shape)) for shape in USUAL_SHAPES)
    raise InvalidInput(
        f"the model takes none of the usual inputs ({tried}): give example_input= (in a file: the function returns "
        "{'model': …, 'example_input': …})"
    )


def _check_forward(model: nn.Module, example: Inputs) -> str:
    """Calls `model` on `example`, which stays as it is; what the user should know of that, or "". From then on a model
    that changes its inputs in place is given copies."""
    if not isinstance(example, Tensor | tuple | Mapping) or not tensors(example):
        raise InvalidInput(
            f"example_input must hold a tensor: a tensor, a tuple or a mapping, not {type(example).__name__}"
        )
    if any(leaf.ndim == 0 for leaf in tensors(example)):
        raise InvalidInput("example_input holds a scalar tensor: the first axis of every tensor is the batch")
    given = map_tensors(Tensor.clone, example)
    try:
        with torch.inference_mode():
            made = output(call(model, given))
    except InvalidInput:
        raise
    except Exception as error:
        where = ", ".join("x".join(map(str, shape)) for shape in shapes(example))
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


def _noise(example: Inputs, seed: int) -> Inputs:
    """`NOISE_ROWS` rows like the example's: floats normal with its mean and spread, integers drawn from its values."""
    generator = torch.Generator().manual_seed(seed)

    def like(tensor: Tensor) -> Tensor:
        shape = (NOISE_ROWS, *tensor.shape[1:])
        if tensor.is_floating_point():
            spread = tensor.float().std() if tensor.numel() > 1 else torch.tensor(1.0)
            return (torch.randn(shape, generator=generator) * spread.clamp_min(1e-3) + tensor.float().mean()).to(tensor)
        chosen = torch.randint(tensor.numel(), (int(torch.tensor(shape).prod()),), generator=generator)
        return tensor.reshape(-1)[chosen].reshape(shape)

    return map_tensors(like, example)


def _split(data: Data, seed: int) -> tuple[list[Inputs], list[Inputs], list[Tensor] | None]:
    """Fit batches, held-out batches, and the held-out labels: half of the shuffled rows each, of every class."""
    total = batch_size(data.inputs)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    if data.labels is not None:
        by_class = order[data.labels[order].argsort(stable=True)]
        order = torch.cat([by_class[::2], by_class[1::2]])
    cut = max(1, total // 2)
    fitted, judged = order[:cut], order[cut:] if total > 1 else order
    return _batches(data.inputs, fitted), *_judged(data, judged)


def _judged(data: Data, chosen: Tensor) -> tuple[list[Inputs], list[Tensor] | None]:
    """The rows `chosen` as held-out batches, and their labels."""
    labels = None if data.labels is None else list(torch.split(data.labels[chosen], BATCH_ROWS))
    return _batches(data.inputs, chosen), labels


def _inputs_of(pairs: Sequence[Any], example: Inputs, seed: int) -> list[Inputs]:
    """Fit batches from `FIT_ROWS` rows of training pairs (inputs, target), taken in a random order of the pairs."""
    inputs, count = [], 0
    for position in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist():
        name, pair = f"item {position} of train_data", pairs[position]
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InvalidInput(f"{name} must be a pair (inputs, target), not a {type(pair).__name__}")
        made, _ = _read_item(pair[0], example, name)
        inputs.append(made)
        count += batch_size(made)
        if count >= FIT_ROWS:
            break
    return _batches(join(inputs), torch.arange(min(count, FIT_ROWS)))


def _batches(inputs: Inputs, chosen: Tensor) -> list[Inputs]:
    size = len(chosen)
    picked = map_tensors(lambda tensor: tensor[chosen], inputs)
    return [rows(picked, start, start + BATCH_ROWS) for start in itertools.islice(range(0, size, BATCH_ROWS), size)]


def set_threads(threads: int) -> None:
    """Threads that this process, and what it starts, measures with."""
    torch.set_num_threads(threads)
