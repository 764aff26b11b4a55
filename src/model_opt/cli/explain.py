"""`model-opt explain`: what a search knew before it measured anything, from whom, and what that changed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model_opt.metrics import METRICS

if TYPE_CHECKING:
    from rich.console import Console

    from model_opt.autotuner.result import CompressionResult
    from model_opt.search.trial import Trial


def explain(
    result: Annotated[Path, typer.Argument(help="A result folder.")],
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Tell which earlier measurements a search started from, whose they were, how far they count, what they changed."""
    from rich.console import Console

    from model_opt.autotuner.result import CompressionResult

    loaded = CompressionResult.load(result)
    if as_json:
        print(json.dumps(explained(loaded)))
        return
    print_explanation(loaded, Console())


def explained(result: "CompressionResult") -> dict[str, Any]:
    """Sources with origins, samples and confidence, the best known plans that were measured here, and the outcome.

    `settled_after` is after how many measured plans the answer had been measured, and `from_knowledge` whether it was
    one of the best that were known from elsewhere.
    """
    from model_opt.autotuner.tally import Tally

    known = result.knowledge
    first = [_tried(expected, result.measured) for expected in known.get("expected", ())]
    answer = {choice.decision: choice.option for choice in result.plan.choices}
    return {
        "started_from": {name: known.get(name, 0) for name in ("rows", "samples", "exact")},
        "origins": list(known.get("origins", ())),
        "sources": [dict(source) for source in known.get("sources", ())],
        "first_plans": [plan for plan in first if plan["measured_at"] is not None],
        "weights": dict(known.get("weights", known.get("heeded", {}))),
        "answer": answer,
        "settled_after": _place(answer, result.measured),
        "from_knowledge": any(plan["plan"] == answer for plan in first),
        "measured": len(result.measured),
        "tried": str(Tally.of(result.observations)),
    }


def _tried(expected: Mapping[str, Any], observed: Sequence["Trial"]) -> dict[str, Any]:
    """A plan that was known to be good elsewhere: what it was there, and here if it was measured."""
    place = _place(expected["plan"], observed)
    return {
        "plan": dict(expected["plan"]),
        "there": dict(expected["metrics"]),
        "here": {} if place is None else dict(observed[place - 1].metrics),
        "measured_at": place,
    }


def _place(plan: Mapping[str, str], observed: Sequence["Trial"]) -> int | None:
    """After how many measured plans `plan` had been measured, or None."""
    for number, seen in enumerate(observed, 1):
        if {choice.decision: choice.option for choice in seen.plan.choices} == plan:
            return number
    return None


def print_explanation(result: "CompressionResult", console: "Console") -> None:
    """`explained`, for people."""
    told = explained(result)
    if not told["sources"]:
        console.print("The search started from nothing: no similar model was known, or it was asked to (method mcts).")
    else:
        start = told["started_from"]
        origins = len(told["origins"])
        console.print(
            f"The search started from {start['rows']} plans ({start['samples']} samples) that "
            f"{origins} deployment{'s' * (origins != 1)} had measured. Here: {told['tried']}.",
            highlight=False,
        )
        _print_sources(told["sources"], told["weights"], console)
        _print_first(told["first_plans"], console)
    whence = "one of the best plans that were known from elsewhere" if told["from_knowledge"] else "found by the search"
    after = f", tried as number {told['settled_after']} of {told['measured']}" if told["settled_after"] else ""
    console.print(f"The answer, {result.plan}, is {whence}{after}.", markup=False, highlight=False)


def _print_sources(sources: Sequence[Mapping[str, Any]], weights: Mapping[str, Any], console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="whose knowledge")
    for heading in ("network", "alike", "plans", "origin", "samples", "share"):
        table.add_column(heading, justify="left" if heading in ("network", "origin") else "right", overflow="fold")
    for source in sources:
        for origin, count in source["samples"].items():
            name = f"{origin[:12]}{' (out of line)' * (origin in source['outliers'])}"
            share = f"{source['shares'][origin]:.0%}"
            alike = "itself" if source["similarity"] == 1.0 else f"{source['similarity']:.3f}"
            table.add_row(source["signature"][:12], alike, str(source["plans"]), Text(name), str(count), share)
    console.print(table)
    for source in sources:
        borne = weights.get(source["signature"], {})
        said = "; ".join(
            f"{name}: confidence {value:.0%}" + (f", borne out here {borne[name]:.0%}" if name in borne else "")
            for name, value in source["confidence"].items()
        )
        doubt = "" if source.get("sound", True) else "not used, its plans' figures do not foretell one another; "
        console.print(f"{source['signature'][:12]}  {doubt}{said}", markup=False, highlight=False, soft_wrap=True)


def _print_first(plans: Sequence[Mapping[str, Any]], console: "Console") -> None:
    if not plans:
        return
    from rich.table import Table
    from rich.text import Text

    from model_opt.autotuner.figures import lost

    table = Table(title="the best plans known from elsewhere, as measured: there → here")
    for heading in ("tried as", "faster", "smaller", "lost", "plan"):
        table.add_column(heading, justify="right" if heading != "plan" else "left", overflow="fold")
    for plan in plans:
        both = (plan["there"], plan["here"])
        faster, smaller = (
            " → ".join(_ratio(side, name) for side in both) for name in ("log_speedup", "log_size_ratio")
        )
        drops = " → ".join("?" if "accuracy_drop" not in side else lost(side["accuracy_drop"]) for side in both)
        chosen = ", ".join(f"{name}={option}" for name, option in plan["plan"].items())
        table.add_row(str(plan["measured_at"]), faster, smaller, drops, Text(chosen))
    console.print(table)


def _ratio(side: Mapping[str, float], name: str) -> str:
    from model_opt.autotuner.figures import versus

    metric = METRICS[name]
    return versus(metric.plain(side[name]), metric.less) if name in side else "?"
