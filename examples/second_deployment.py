"""A deployment that starts from another's knowledge: what `digits.py` runs last.

python examples/second_deployment.py BUNDLE RESULT ORIGIN

Trusts ORIGIN, takes in the BUNDLE that it has signed, compresses a network a quarter wider than that of RESULT, and
says in its last line whether it was as good, and after how many measured plans. Its keys, whom it trusts and its
knowledge are in its own HOME.
"""

import argparse
import math
import shutil
import time
from contextlib import closing
from pathlib import Path

import torch
from digits import LEAST_SEARCH_S, make_network, read_digits, train
from rich.console import Console

from model_opt.autotuner import IntelligentOptimizer
from model_opt.autotuner.callbacks import LineProgress
from model_opt.autotuner.figures import figure_text, interval_text, is_uncertain, lost, smaller, times
from model_opt.autotuner.finish import BUSY
from model_opt.autotuner.result import CompressionResult
from model_opt.cli.explain import print_explanation
from model_opt.exchange.shared import import_bundle
from model_opt.federation.identity import identity_folder
from model_opt.federation.trust import trust
from model_opt.search.trial import Trial
from model_opt.storage.open import open_store

MOST_LOST = 0.01


def compressed(result: CompressionResult) -> list[Trial]:
    """What was measured of plans that do something, in order."""
    return [seen for seen in result.measured if seen.plan.choices]


def reached(result: CompressionResult, speedup: float) -> int | None:
    """After how many measured plans one within the limit was at least `speedup` times faster, or None."""
    for number, seen in enumerate(compressed(result), 1):
        fast = seen.metrics.get("log_speedup", -math.inf) >= math.log(speedup)
        if fast and seen.metrics.get("accuracy_drop", math.inf) <= MOST_LOST:
            return number
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("origin")
    parser.add_argument("--simulations", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=88.0, help="seconds for training, search and final figures")
    arguments = parser.parse_args()
    console = Console()

    home = identity_folder().parent
    shutil.rmtree(home / "knowledge", ignore_errors=True)  # a run of this example before this one: forgotten
    store = home / "knowledge" / "second.db"
    store.parent.mkdir(parents=True)
    trust(arguments.origin, 1.0, name="the first deployment")
    with closing(open_store(f"sqlite:///{store}")) as opened:
        taken = import_bundle(opened, arguments.bundle)
    console.print(f"taken in: {taken.rows_added} measured plans, signed by {', '.join(o[:12] for o in taken.origins)}")

    began, data = time.monotonic(), read_digits()
    torch.manual_seed(1)
    model = make_network(width=40)
    train(model, *data["train"])
    images, classes = data["calibrate"]
    _, result = IntelligentOptimizer(storage_backend=f"sqlite:///{store}", callbacks=LineProgress()).optimize_auto(
        model,
        method="hybrid",
        n_simulations=arguments.simulations,
        timeout_seconds=max(arguments.timeout - (time.monotonic() - began), LEAST_SEARCH_S),
        constraints={"max_accuracy_drop": MOST_LOST},
        example_input=images[:8],
        calibration_data=zip(images.split(50), classes.split(50), strict=True),
        train_data=zip(*(part.split(50) for part in data["train"]), strict=True),
        output=arguments.result.parent / "second_digits",
    )
    print_explanation(result, console)
    compare(CompressionResult.load(arguments.result), result, console)


def best_of(result: CompressionResult) -> float:
    """How many times faster the fastest plan within the limit was, as the search saw it."""
    kept = [seen for seen in result.observations if seen.metrics.get("accuracy_drop", 1.0) <= MOST_LOST]
    return max((math.exp(seen.metrics["log_speedup"]) for seen in kept), default=1.0)


def sooner(first: int | None, second: int | None, fast: str, tried: int) -> str:
    """Whether and how much sooner the second was as good, in one sentence; `fast` says how fast its best was."""
    if second is None:
        return f"The second deployment did not get as fast in the {tried} plans that it measured: {fast}."
    said = f"The second deployment was as fast after {second} measured plan{'s' * (second != 1)}"
    if first is None or second > first:
        return f"{said}; the first needed {first or 'more than it had'}: it was no sooner."
    if second == first:
        return f"{said}, like the first: it was no sooner."
    return f"{said}; the first needed {first}."


def compare(first: CompressionResult, second: CompressionResult, console: Console) -> None:
    """The last lines: both answers, and whether the second deployment was as fast sooner."""
    answer = first.figures["speedup"]
    console.rule("what it was good for")
    for name, result in (("first", first), ("second", second)):
        speed = result.figures["speedup"]
        rest = f"{smaller(result.compression_ratio)}, {lost(result.accuracy_drop)}"
        told = f"speed-up {figure_text(speed)}, {rest}; 95 %: {interval_text(speed)}"
        console.print(f"the {name} deployment's answer: {told}", highlight=False)
    console.print(
        f"as fast: {times(answer.low)} or more, the lower end of the first one's interval, within {MOST_LOST:.0%} of "
        "accuracy lost; one plan is measured no surer than that",
        style="dim",
        highlight=False,
    )
    fast = f"{times(best_of(second))} where the first had {times(answer.value)}"
    told = sooner(reached(first, answer.low), reached(second, answer.low), fast, len(compressed(second)))
    if is_uncertain(answer) or BUSY in answer.doubt:  # another doubt's interval covers all that was seen
        told = f"Who was as fast sooner cannot be said: the first one's speed-up is {interval_text(answer)}."
    console.print(told, style="bold", highlight=False)


if __name__ == "__main__":
    main()
