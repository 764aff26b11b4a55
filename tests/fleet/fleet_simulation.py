"""A fleet in one thread: the real state machines, a network that drops, doubles and reorders, and made-up deaths."""

import random
from dataclasses import dataclass, field

from model_opt.errors import FleetError
from model_opt.fleet.coordinator_state import CoordinatorState, FleetRules
from model_opt.fleet.journal import Journal, MemoryJournal
from model_opt.fleet.leases import Holder
from model_opt.fleet.messages import Reply, WorkRequest
from model_opt.fleet.worker_state import WorkerState
from model_opt.search.evaluator import Failure, Measurement, Outcome, Purpose, Reason
from model_opt.search.objective import Objective
from model_opt.search.plan import Choice, Plan


def numbered(number: int) -> Plan:
    return Plan((Choice(decision="n", option=str(number)),))


@dataclass
class Samples:
    """What every evaluator call handed out: by (lease, attempt, worker's life) for Welford, and all measured plans."""

    outcomes: list[tuple[str, int, Outcome]] = field(default_factory=list)


@dataclass
class Worker:
    state: WorkerState
    frozen_until: float = 0.0
    leaving: bool = False


class Simulation:
    """One schedule, drawn from `seed`. `run` goes on until the search has ended; the coordinator's state."""

    def __init__(self, seed: int, *, budget: int = 40, workers: int = 5, journal: Journal | None = None) -> None:
        self.rng = random.Random(seed)
        self.journal = journal or MemoryJournal()
        self.rules = FleetRules(budget=budget, objective=Objective(metric="x"), lease_s=3.0)
        self.now = 0.0
        self.lives = 0
        self.evaluated = Samples()
        self.network: list[tuple[float, int, object]] = []
        self.zombies: list[CoordinatorState] = []
        self.acknowledged: dict[tuple[str, int], None] = {}
        self.workers = {f"w{i}": self.born(f"w{i}") for i in range(workers)}
        self.ghosts: list[Worker] = []
        self.coordinator = self.revive()
        self.down_until = 0.0

    def born(self, name: str) -> Worker:
        self.lives += 1
        return Worker(WorkerState(Holder(worker=name, incarnation=f"{self.lives:06d}"), "here"))

    def revive(self) -> CoordinatorState:
        term, epoch, kept = self.journal.begin()
        return CoordinatorState(self.rules, kept, term=term, epoch=epoch, now=self.now)

    def send(self, message: object) -> None:
        """Into the network: lost, doubled, late."""
        for _ in range(self.rng.choice((0, 1, 1, 1, 1, 1, 2))):
            self.network.append((self.now + self.rng.expovariate(4.0), self.rng.getrandbits(30), message))

    def run(self, steps: int = 20_000) -> CoordinatorState:
        for _ in range(steps):
            self.now += 0.1
            self.step()
            if self.coordinator.ending and self.settled_down():
                return self.coordinator
        raise AssertionError("the search did not end")

    def settled_down(self) -> bool:
        """Whether everything that was measured by the living has been acknowledged."""
        return all(not w.state.unsent and w.state.running is None for w in self.workers.values()) and not self.ghosts

    def step(self) -> None:
        due = sorted(item for item in self.network if item[0] <= self.now)
        self.network = [item for item in self.network if item[0] > self.now]
        for _, _, message in due:
            self.deliver(message)
        if self.now >= self.down_until and self.rng.random() < 0.3:
            self.journal.commit(self.coordinator.term, [self.coordinator.tick(self.now)])
        for worker in [*self.workers.values(), *self.ghosts]:
            if self.now >= worker.frozen_until and self.rng.random() < 0.5:
                self.act(worker)
        if self.coordinator.ending is None:
            self.mischief()
        self.coordinator.book.validate()

    def deliver(self, message: object) -> None:
        if isinstance(message, WorkRequest):
            if self.zombies and self.rng.random() < 0.2:
                self.ask_a_zombie(message)
            elif self.now >= self.down_until:
                self.answer(message)
        else:
            holder, reply = message  # type: ignore[misc]
            for worker in [*self.workers.values(), *self.ghosts]:
                if worker.state.holder == holder and worker.state.hear(reply) and reply.ending == "replaced":
                    worker.leaving = True

    def answer(self, ask: WorkRequest) -> None:
        reply, changes = self.coordinator.handle(ask, self.now)
        fate = self.rng.random()
        if fate < 0.001:
            self.crash()  # before the commit: nobody has heard of it
            return
        self.journal.commit(self.coordinator.term, [changes])
        if fate < 0.002:
            self.crash()  # between commit and acknowledgement
            return
        self.acknowledged |= dict.fromkeys(reply.acknowledged)
        self.send((ask.holder, reply))

    def ask_a_zombie(self, ask: WorkRequest) -> None:
        """A coordinator that was replaced and does not know it must be unable to write."""
        zombie = self.rng.choice(self.zombies)
        try:
            reply, changes = zombie.handle(ask, self.now)
            if changes:
                self.journal.commit(zombie.term, [changes])
                raise AssertionError("an overtaken term could write")
        except FleetError:
            self.zombies.remove(zombie)
            return
        self.send((ask.holder, reply))

    def act(self, worker: Worker) -> None:
        state = worker.state
        if state.running is not None and self.rng.random() < 0.5:
            outcome = self.measure(state.running.plan)
            self.evaluated.outcomes.append((state.running.lease_id, state.running.attempt, outcome))
            state.finish(outcome, 0.1)
        if state.queue and self.rng.random() < 0.05:
            state.give_back()
        if state.running is None and not (state.last and state.last.ending):
            state.start()
        proposals = [(numbered(self.rng.randrange(200)), Purpose.EXPLORE) for _ in range(4)]
        if state.last and state.last.news and self.rng.random() < 0.1:
            proposals.insert(0, (self.rng.choice(state.last.news).plan, Purpose.VERIFY))
        self.send(state.question(proposals=proposals, wanted=max(0, 2 - state.holds), leaving=worker.leaving))
        if worker in self.ghosts and not state.unsent and state.running is None:
            self.ghosts.remove(worker)

    def measure(self, plan: Plan) -> Outcome:
        if self.rng.random() < 0.1:
            return Failure(plan=plan, reason=Reason.ERROR, message="made up")
        values = tuple(self.rng.gauss(1e3, 1.0) for _ in range(self.rng.randint(1, 5)))
        return Measurement(plan=plan, samples={"x": values, "y": values[:1]})

    def mischief(self) -> None:
        """Workers die, freeze, are replaced while frozen; the coordinator dies."""
        draw = self.rng.random()
        name = self.rng.choice(list(self.workers))
        if draw < 0.005:
            self.workers[name] = self.born(name)
        elif draw < 0.010:
            self.workers[name].frozen_until = self.now + self.rng.uniform(1, 20)
        elif draw < 0.013:
            ghost = self.workers[name]
            ghost.frozen_until = self.now + self.rng.uniform(1, 20)
            self.ghosts.append(ghost)
            self.workers[name] = self.born(name)
        elif draw < 0.014:
            self.crash()

    def crash(self) -> None:
        self.zombies.append(self.coordinator)
        self.coordinator = self.revive()
        self.down_until = self.now + self.rng.uniform(0, 3)


__all__ = ["Reply", "Simulation", "numbered"]
