"""OpenSpiel's and mctx's searches on the task of `tree_speed.py`; run by the Python that has them.

Reads the prior and the rewards as JSON, `[depth, branching]`, and prints simulations a second. An action taken at depth
t is worth `rewards[t, action]`; a path ends at the last depth. Neither library is given a model to evaluate: a leaf is
worth the sum of the rewards on the way, at constant cost.
"""

import json
import sys
import time
from typing import Any

import numpy as np


def open_spiel(prior: np.ndarray, rewards: np.ndarray, quick: bool) -> dict[str, float]:
    """OpenSpiel's MCTS bot (`open_spiel.python.algorithms.mcts`), PUCT, on a game of one player written in Python."""
    import pyspiel
    from open_spiel.python.algorithms import mcts

    depth, branching = rewards.shape
    kind = pyspiel.GameType(
        short_name="additive",
        long_name="Additive rewards",
        dynamics=pyspiel.GameType.Dynamics.SEQUENTIAL,
        chance_mode=pyspiel.GameType.ChanceMode.DETERMINISTIC,
        information=pyspiel.GameType.Information.PERFECT_INFORMATION,
        utility=pyspiel.GameType.Utility.GENERAL_SUM,
        reward_model=pyspiel.GameType.RewardModel.TERMINAL,
        max_num_players=1,
        min_num_players=1,
        provides_information_state_string=False,
        provides_information_state_tensor=False,
        provides_observation_string=False,
        provides_observation_tensor=False,
    )
    info = pyspiel.GameInfo(
        num_distinct_actions=branching,
        max_chance_outcomes=0,
        num_players=1,
        min_utility=0.0,
        max_utility=1.0,
        max_game_length=depth,
    )

    class State(pyspiel.State):
        def __init__(self, game: Any) -> None:
            super().__init__(game)
            self.at, self.value = 0, 0.0

        def current_player(self) -> int:
            return pyspiel.PlayerId.TERMINAL if self.at == depth else 0

        def _legal_actions(self, player: int) -> list[int]:
            return list(range(branching))

        def _apply_action(self, action: int) -> None:
            self.value += float(rewards[self.at, action])
            self.at += 1

        def is_terminal(self) -> bool:
            return self.at == depth

        def returns(self) -> list[float]:
            return [self.value]

        def __str__(self) -> str:
            return f"{self.at} {self.value}"

    class Game(pyspiel.Game):
        def __init__(self, params: Any = None) -> None:
            super().__init__(kind, info, params or {})

        def new_initial_state(self) -> State:
            return State(self)

    class Sum(mcts.Evaluator):
        def evaluate(self, state: State) -> list[float]:
            return [state.value]

        def prior(self, state: State) -> list[tuple[int, float]]:
            return list(enumerate(prior[state.at].tolist()))

    many = 500 if quick else 5_000
    game = Game()
    bot = mcts.MCTSBot(
        game, 0.5, many, Sum(), solve=False, child_selection_fn=mcts.SearchNode.puct_value,
        random_state=np.random.RandomState(0),
    )  # fmt: skip
    start = time.perf_counter()
    bot.mcts_search(game.new_initial_state())
    return {"open_spiel_per_s": many / (time.perf_counter() - start)}


def mctx(prior: np.ndarray, rewards: np.ndarray, quick: bool) -> dict[str, float]:
    """mctx's MuZero policy, compiled for the processor: one tree, and 64 trees side by side."""
    import jax
    import jax.numpy as jnp
    import mctx as library

    depth = len(rewards)
    logits, paid = jnp.log(jnp.asarray(prior)), jnp.asarray(rewards)

    def recurrent(_: Any, key: Any, action: Any, at: Any) -> Any:
        last = at + 1 >= depth
        following = jnp.minimum(at + 1, depth - 1)
        out = library.RecurrentFnOutput(
            reward=jnp.where(at < depth, paid[jnp.minimum(at, depth - 1), action], 0.0),
            discount=jnp.where(last, 0.0, 1.0),
            prior_logits=logits[following],
            value=jnp.zeros(action.shape),
        )
        return out, at + 1

    def per_second(trees: int, many: int) -> float:
        def search(key: Any) -> Any:
            at = jnp.zeros(trees, dtype=jnp.int32)
            root = library.RootFnOutput(prior_logits=logits[at], value=jnp.zeros(trees), embedding=at)
            return library.muzero_policy(
                None, key, root, recurrent, many, max_depth=depth, dirichlet_fraction=0.0
            ).action_weights

        compiled = jax.jit(search)
        compiled(jax.random.PRNGKey(0)).block_until_ready()
        start = time.perf_counter()
        compiled(jax.random.PRNGKey(1)).block_until_ready()
        return trees * many / (time.perf_counter() - start)

    many = 200 if quick else 2_000
    return {"mctx_per_s": per_second(1, many), "mctx_64_trees_per_s": per_second(64, many)}


def main() -> None:
    given = json.load(sys.stdin)
    prior, rewards = np.array(given["prior"]), np.array(given["rewards"])
    print(json.dumps({"open_spiel": open_spiel, "mctx": mctx}[sys.argv[1]](prior, rewards, given["quick"])))


if __name__ == "__main__":
    main()
