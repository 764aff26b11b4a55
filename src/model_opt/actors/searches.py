"""Searches on a cluster, by name: submit, watch, look, stop, resume, extend. A search outlives who started it."""

import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_opt.actors.cluster import HEAD, answer, connect, find_coordinator, running_searches
from model_opt.errors import FleetError, InvalidInput
from model_opt.fleet.bad_starts import FAILED
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.messages import MergedRow
from model_opt.fleet.proposer import Search
from model_opt.fleet.submission import Placement, Sharing, Submission, check_search_name, chunks, pickled
from model_opt.measuring.deadlines import Deadlines
from model_opt.search.conclusion import Conclusion
from model_opt.search.context import Context
from model_opt.search.evaluator import Evaluator, Outcome
from model_opt.search.recommendation import Recommendation
from model_opt.search.trial import Trial

WATCH_S = 0.5
Progress = Callable[[Mapping[str, Any]], None]
"""Told the status of a search every half second."""


@dataclass(frozen=True, kw_only=True)
class FleetResult:
    """What a search has found so far. `trials` are those of the context most was measured in, in their order, with what
    all that was settled before told of each; `conclusion` is what they tell, None where nothing was measured. `status`
    has the counts; `descriptions` is what each worker's evaluator said."""

    name: str
    ending: str
    conclusion: Conclusion | None
    trials: tuple[Trial, ...]
    rows: tuple[MergedRow, ...]
    context: Context | None
    contexts: Mapping[str, Context]
    descriptions: Mapping[str, Any]
    status: Mapping[str, Any]

    @property
    def recommendation(self) -> Recommendation | None:
        """The answer, None where nothing was measured."""
        return None if self.conclusion is None else self.conclusion.best

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What the trials came to."""
        return tuple(trial.outcome for trial in self.trials if trial.outcome is not None)


def run_search(
    factory: Callable[[], Evaluator],
    search: Search,
    *,
    name: str,
    simulations: int,
    address: str | None = None,
    state: str | None = None,
    timeout_s: float | None = None,
    grace_s: float = 0.0,
    patience: int | None = None,
    whole_only: frozenset[str] = frozenset(),
    gather: int = 0,
    placement: Placement | None = None,
    deadlines: Deadlines | None = None,
    sharing: Sharing | None = None,
    subject: str = "",
    on_progress: Progress | None = None,
) -> FleetResult:
    """Searches on a cluster, and waits for the end.

    Parameters
    ----------
    factory
        Makes the evaluator in each measuring process; it is pickled.
    search
        The space, the objective and what is known beforehand.
    name
        The search's; one of this name that is there already goes on (its own submission holds).
    simulations
        How many trials the search may settle.
    address
        The cluster's, or None for a local cluster on this machine.
    state
        The folder of the head node that searches are kept in; None for the user's own there.
    timeout_s
        The time for everything, in seconds; None for no limit.
    grace_s, patience, whole_only, gather
        Those of `FleetRules`.
    placement
        How many workers there are, and what each of them needs.
    deadlines
        How long each phase of a measurement may take.
    sharing
        Where what was measured is kept.
    subject
        Tells what is searched for from anything else under the same name; by default the factory's pickle does.
    on_progress
        Is told the coordinator's status as it changes.

    Returns
    -------
    FleetResult
        The recommendation, and who settled what, when.

    Raises
    ------
    InvalidInput
        For what cannot be used.
    FleetError
        Where the cluster cannot be reached, or no worker can measure the baseline.
    """
    rules = FleetRules(
        budget=simulations,
        objective=search.objective,
        deadline_s=None if timeout_s is None else time.time() + timeout_s,
        grace_s=grace_s,
        patience=patience,
        whole_only=whole_only,
        gather=gather,
    )
    request = Submission(
        search=search,
        rules=rules,
        placement=placement or Placement(),
        deadlines=deadlines or Deadlines(),
        sharing=sharing,
        subject=subject,
    )
    submit(factory, request, name=name, address=address, state=state)
    return watch(name, address=address, on_progress=on_progress)


def submit(
    factory: Callable[[], Evaluator],
    request: Submission,
    *,
    name: str,
    address: str | None = None,
    state: str | None = None,
) -> None:
    """Hands a search to the cluster; when this returns it needs this process no more (on a real cluster).

    Parameters
    ----------
    factory
        Makes the evaluator in each measuring process; it is pickled.
    request
        All else that the search is made of.
    name, address, state
        As for `run_search`.

    Raises
    ------
    InvalidInput, FleetError
        As `run_search` does.
    """
    check_search_name(name)
    if request.rules.budget < 1:
        raise InvalidInput(f"simulations must be at least 1, not {request.rules.budget}")
    with tempfile.TemporaryDirectory(prefix="model-opt-") as folder:
        path, manifest = pickled(factory, Path(folder))
        connect(address, cpus=local_cpus(request.placement))
        coordinator = _start(name, state)
        opened = _is_open(coordinator)
        if opened and answer(coordinator.discard_unmeasured.remote()):
            _end(coordinator, name)
            coordinator = _start(name, state)
        elif opened:
            other = answer(coordinator.difference.remote(manifest, request))
            if other is not None:
                raise FleetError(
                    f"a search {name!r} is kept whose {other} is another one, and what it measured would be told as "
                    "this one's: give this search another name"
                )
            return
        for number, chunk in enumerate(chunks(path)):
            answer(coordinator.receive.remote(number, chunk))
        answer(coordinator.complete.remote(manifest, request))


def watch(name: str, *, address: str | None = None, on_progress: Progress | None = None) -> FleetResult:
    """Waits for the end of a search, from wherever; a lost connection to it can be made again by calling this again.

    Raises `FleetError` where no worker can measure the baseline, with what they say.
    """
    connect(address)
    coordinator = find_coordinator(name)
    while True:
        status = answer(coordinator.status.remote())
        if on_progress is not None:
            on_progress(status)
        if status["ending"] == FAILED:
            raise FleetError(f"no worker can measure: {_errors_of(coordinator)} (once that is mended, start it again)")
        if status["ending"]:
            return result(name, address=address)
        time.sleep(WATCH_S)


def settled(name: str, since: int) -> list[Trial]:
    """What settled after the first `since`, in its order, at most 1,000; of a search that this process watches."""
    told: list[Trial] = answer(find_coordinator(name).trials.remote(since))
    return told


def result(name: str, *, address: str | None = None) -> FleetResult:
    """What a search has found so far, finished or not."""
    connect(address)
    coordinator = find_coordinator(name)
    trials, conclusion = answer(coordinator.conclusion.remote())
    status, rows = answer([coordinator.status.remote(), coordinator.rows.remote()])
    contexts, descriptions = answer(coordinator.facts.remote())
    return FleetResult(
        name=name,
        ending=status["ending"] or "running",
        conclusion=conclusion,
        trials=trials,
        rows=tuple(rows),
        context=contexts.get(trials[0].context) if trials else None,
        contexts=contexts,
        descriptions=descriptions,
        status=status,
    )


def status(name: str, *, address: str | None = None) -> dict[str, Any]:
    """Counts of a search and where it stands."""
    connect(address)
    found: dict[str, Any] = answer(find_coordinator(name).status.remote())
    return found


def flushed(name: str, *, address: str | None = None, timeout_s: float = 30.0) -> str | None:
    """Waits until all that a search has measured is in the knowledge store; else a sentence that says why it is not,
    after `timeout_s`, and how it gets there."""
    end = time.monotonic() + timeout_s
    while (told := status(name, address=address)).get("unflushed"):
        if time.monotonic() > end:
            reason = told["flush_error"] or f"{told['unflushed']} rows are still on their way"
            return (
                f"not all that was measured is in the knowledge base yet ({reason}). It is kept, and goes there with: "
                f"{resumed_by(told, address)}"
            )
        time.sleep(WATCH_S)
    return None


def resumed_by(told: Mapping[str, Any], address: str | None) -> str:
    """The command that starts a search again; `told` has its `name` and its `state` folder, as `status` does."""
    where = "" if address in (None, "auto") else f" --address {address}"
    return f"model-opt resume {told['name']} --state {Path(told['state']).parent}{where}"


def on_head(address: str | None) -> bool:
    """Whether this machine is the cluster's head node, so that its paths are the coordinator's."""
    import ray

    connect(address)
    here = ray.get_runtime_context().get_node_id()
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    return any(node["NodeID"] == here and next(iter(HEAD)) in node["Resources"] for node in nodes)


def stop(name: str, *, address: str | None = None) -> None:
    """Ends a search; what it has measured stays."""
    connect(address)
    answer(find_coordinator(name).stop.remote())


def extend(name: str, simulations: int, *, address: str | None = None, state: str | None = None) -> None:
    """Lets a search go on for `simulations` more, also one that has ended."""
    if simulations < 1:
        raise InvalidInput(f"simulations must be at least 1, not {simulations}")
    resume(name, address=address, state=state)
    answer(find_coordinator(name).extend.remote(simulations, secrets.token_hex(8)))  # Ray may send it twice


def resume(name: str, *, address: str | None = None, state: str | None = None) -> None:
    """Starts a search's coordinator from its state folder, with exact counts; nothing where it runs.

    Raises `FleetError` where the folder has no such search.
    """
    import ray

    check_search_name(name)
    connect(address)
    if name in running_searches():
        return
    kept = kept_searches(address=address, state=state)
    if name not in kept:
        raise FleetError(f"no search {name!r} is kept on the head node (kept: {', '.join(sorted(kept)) or 'none'})")
    coordinator = _start(name, state)
    if not _is_open(coordinator):
        ray.kill(coordinator, no_restart=True)
        raise FleetError(f"the search {name!r} is kept on the head node, but it is not whole: submit it again")


def release(name: str, *, address: str | None = None) -> str:
    """Ends a search's processes; its state folder stays, and `resume` and `extend` start it again from there: returns
    the command for that."""
    connect(address)
    coordinator = find_coordinator(name)
    command = resumed_by(answer(coordinator.where.remote()), address)
    answer(coordinator.shutdown.remote())
    _end(coordinator, name)
    return command


def list_searches(*, address: str | None = None, state: str | None = None) -> dict[str, str]:
    """Every search by name: "arriving", "running", its ending, or "kept" where only its folder is there."""
    connect(address)
    found = dict.fromkeys(kept_searches(address=address, state=state), "kept")
    for name in running_searches():
        coordinator = find_coordinator(name)
        try:
            arrived = answer(coordinator.is_open.remote())
            found[name] = str(answer(coordinator.status.remote())["ending"] or "running") if arrived else "arriving"
        except FleetError as error:
            found[name] = f"cannot be used: {error}"
    return dict(sorted(found.items()))


def kept_searches(*, address: str | None = None, state: str | None = None) -> list[str]:
    """The names of searches in the head node's state folder."""
    import ray

    connect(address)
    names: list[str] = answer(ray.remote(_folders).options(num_cpus=0, resources=HEAD).remote(state))
    return names


def _folders(state: str | None) -> list[str]:
    from model_opt.fleet.submission import is_complete, state_root

    root = state_root(state)
    return [folder.name for folder in root.iterdir() if is_complete(folder)] if root.is_dir() else []


def _start(name: str, state: str | None) -> Any:
    from model_opt.actors.coordinator import start_coordinator

    return start_coordinator(name, state)


def _is_open(coordinator: Any) -> bool:
    """Whether it has its search; where what is kept of that cannot be used the coordinator ends, too."""
    import ray

    try:
        return bool(answer(coordinator.is_open.remote()))
    except FleetError:
        ray.kill(coordinator, no_restart=True)
        raise


def _end(coordinator: Any, name: str) -> None:
    """Ends a coordinator that was shut; its name is free afterwards."""
    import ray

    ray.kill(coordinator, no_restart=True)
    end = time.monotonic() + 10
    while name in running_searches() and time.monotonic() < end:
        time.sleep(0.05)


def _errors_of(coordinator: Any) -> str:
    """What the workers of a search said that could not begin."""
    _, descriptions = answer(coordinator.facts.remote())
    return "; ".join(sorted({said["error"] for said in descriptions.values() if "error" in said}))


def local_cpus(placement: Placement) -> int | None:
    """Logical CPUs for a local cluster: enough for the workers that were asked for."""
    return None if placement.workers is None else max(1, round(placement.workers * placement.cpus))
