"""`model-opt search` and its kin: searches on a Ray cluster, by name."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Name = Annotated[str, typer.Argument(help="The search's name.")]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster: auto, host:port. None: this machine.")]
State = Annotated[str | None, typer.Option(help="Folder of the head node that searches are kept in.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


def search(
    model: Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME or path/to/file.py:factory.")],
    simulations: Annotated[int, typer.Option(min=1, help="Plans to measure, failures included.")] = 100,
    address: Address = None,
    workers: Annotated[str, typer.Option(help="A number, or auto: one for every slot.")] = "auto",
    name: Annotated[str | None, typer.Option(help="What the search is found by; made up if not given.")] = None,
    state: State = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for everything.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="End after so many plans without a better one.")] = None,
    max_accuracy_drop: Annotated[str, typer.Option(help="A share: 2% or 0.02 is two points.")] = "1%",
    plan: Annotated[list[str] | None, typer.Option(help="A plan to try first: prune=0.5,precision=bf16")] = None,
    freeze: Annotated[list[str] | None, typer.Option(help="decision=option that every plan has.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A technique or decision not to use.")] = None,
    knowledge: Annotated[str | None, typer.Option(help="URL or .json path of the knowledge base.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the result and the optimised model.")] = None,
    seed: Annotated[int, typer.Option(help="Makes a worker's choices repeatable.")] = 0,
    as_json: Json = False,
) -> None:
    """Search with one worker per GPU or slot of a Ray cluster.

    Examples:
      model-opt search my_model.py:make --workers 2 --simulations 40 --max-accuracy-drop 2%

      model-opt search my_model.py:make --address auto --simulations 10000 --name night --state /state

    """
    from model_opt.autotuner.constraints import Constraints
    from model_opt.cli.optimize import loaded, pairs, progress, tell_result

    wanted = {"max_accuracy_drop": max_accuracy_drop}
    Constraints.read(wanted)
    many = _workers(workers)
    with progress(as_json, timeout) as shown:
        source = loaded(model, shown)
        from model_opt.autotuner import IntelligentOptimizer
        from model_opt.autotuner.fleet_engine import LOCAL

        _, result = IntelligentOptimizer(storage_backend=knowledge, callbacks=shown, seed=seed).optimize_auto(
            source.model,
            "hybrid",
            simulations,
            timeout,
            wanted,
            plans=[pairs(one.split(",")) for one in plan or []],
            freeze=pairs(freeze or []),
            exclude=exclude or [],
            output=output,
            ray_address=address or LOCAL,
            workers=many,
            name=name,
            state=state,
            patience=patience,
            **source.arguments,
        )
    tell_result(result, output, as_json)


def status(name: Name, address: Address = "auto", as_json: Json = False) -> None:
    """Say where a search stands.

    Example: model-opt status night
    """
    from model_opt.actors import searches

    _tell(searches.status(name, address=address), as_json)


def stop(name: Name, address: Address = "auto") -> None:
    """End a search; what it has measured stays, and `extend` lets it go on.

    Example: model-opt stop night
    """
    from model_opt.actors import searches

    searches.stop(name, address=address)
    print(f"{name} is stopped")


def release(name: Name, address: Address = "auto") -> None:
    """End a search's processes, which wait after its end; its folder stays, and `resume` starts it again.

    Example: model-opt release night
    """
    from model_opt.actors import searches

    command = searches.release(name, address=address)
    print(f"{name} is released; {command} starts it again")


def resume(name: Name, address: Address = None, state: State = None, as_json: Json = False) -> None:
    """Start a search again from its state folder, with exact counts, and wait for its end.

    Example: model-opt resume night
    """
    from model_opt.actors import searches

    searches.resume(name, address=address, state=state)
    _finish(name, address, as_json)


def extend(
    name: Name,
    simulations: Annotated[int, typer.Option(min=1, help="How many more plans to measure.")],
    address: Address = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Let a search go on, also one that has ended, and wait for its end.

    Example: model-opt extend night --simulations 2000
    """
    from model_opt.actors import searches

    searches.extend(name, simulations, address=address, state=state)
    _finish(name, address, as_json)


def list_(address: Address = None, state: State = None, as_json: Json = False) -> None:
    """List the searches that run or are kept.

    Example: model-opt list --address auto
    """
    from model_opt.actors import searches

    _tell(searches.list_searches(address=address, state=state), as_json)


def _finish(name: str, address: str | None, as_json: bool) -> None:
    from model_opt.actors import searches
    from model_opt.autotuner.callbacks import describe_status

    def say(told: Any) -> None:
        print(describe_status(told), file=sys.stderr)

    found = searches.watch(name, address=address, on_progress=say)
    missing = searches.flushed(name, address=address)
    if missing is not None:
        print(missing, file=sys.stderr)
    best = found.recommendation
    _tell(searches.status(name, address=address) | {"plan": str(best.plan) if best else None}, as_json)


def _tell(fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(fields, default=str))
        return
    for key, value in fields.items():
        print(f"{key:16} {value}")


def _workers(text: str) -> int | None:
    from model_opt.errors import InvalidInput

    if text == "auto":
        return None
    if not text.isdigit() or not int(text):
        raise InvalidInput(f"--workers takes a positive number or auto, not {text!r}")
    return int(text)
