"""One algorithm that learns on one map: the unit of work of `compare`."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from awsgd_rl.benchmarks.resumable import learn
from awsgd_rl.benchmarks.workers import Send, one_thread

if TYPE_CHECKING:
    import gymnasium as gym

    from awsgd_rl.benchmarks.compare import CompareConfig
    from awsgd_rl.envs import TrapGridworld

FloatArray = NDArray[np.float64]

BINS = 100
"""Points of a learning curve."""

FINAL_EPISODES = 200
"""Episodes that measure the policy learned, where no exact computation can."""

_FINAL_ENVS = 16
_SECONDS_BETWEEN_MESSAGES = 0.25


class Algorithm(NamedTuple):
    """What stands behind a label of `--algos`.

    Attributes:
        agent: the class in `awsgd_rl.agents`.
        settings: its settings, where they are not the defaults.
        title: how figures and tables call it.
    """

    agent: str
    settings: Mapping[str, Any]
    title: str


ALGORITHMS: dict[str, Algorithm] = {
    "awsgd": Algorithm("AWSGD", {}, "AW-SGD"),
    "awsgd-mixture": Algorithm("AWSGD", {"variant": "mixture"}, "AW-SGD, mixture"),
    "awsgd-paper": Algorithm("AWSGD", {"variant": "paper"}, "AW-SGD, Algorithm 2"),
    "awsgd-returns": Algorithm("AWSGD", {"critic": False}, "AW-SGD without its critic"),
    "on-policy-critic": Algorithm(
        "AWSGD",
        {"batch_size": 10, "memory": 10, "uniform_share": 1.0, "exploration_share": 0.0},
        "on-policy with AW-SGD's critic",
    ),
    "uniform-replay": Algorithm("AWSGD", {"uniform_share": 1.0}, "uniform replay"),
    "reinforce": Algorithm("Reinforce", {"updates": 1}, "on-policy, one update a batch"),
    "reinforce-equal": Algorithm("Reinforce", {}, "on-policy, as many updates a batch"),
    "a2c": Algorithm("StableBaselines", {}, "A2C (SB3)"),
    "ppo": Algorithm("StableBaselines", {}, "PPO (SB3)"),
    "dqn": Algorithm("StableBaselines", {}, "DQN (SB3)"),
    "sac": Algorithm("StableBaselines", {}, "SAC (SB3)"),
    "td3": Algorithm("StableBaselines", {}, "TD3 (SB3)"),
    "prioritized-dqn": Algorithm("StableBaselines", {}, "DQN, prioritized replay"),
    "prioritized-sac": Algorithm("StableBaselines", {}, "SAC, prioritized replay"),
    "prioritized-td3": Algorithm("StableBaselines", {}, "TD3, prioritized replay"),
}
"""What can be compared, by label. `reinforce` is the baseline of Bouchard et al. (2015). Three are
AW-SGD with a part taken out: `uniform-replay` draws past trajectories uniformly, `awsgd-returns`
has no critic, `on-policy-critic` draws from the fresh batch alone."""

PAPER_REGIME: Mapping[str, Any] = {"reward_to_go": False, "baseline": False, "batch_size": 4}
"""Settings of this package's agents in the regime "paper"."""

PAPER_LEARNING_RATES: Mapping[str, float] = {
    "awsgd": 0.4,
    "awsgd-mixture": 0.1,
    "awsgd-paper": 0.1,
    "awsgd-returns": 0.4,
    "on-policy-critic": 0.3,
    "uniform-replay": 0.4,
    "reinforce": 0.1,
    "reinforce-equal": 0.3,
}
"""Step sizes ρ of table policies there, each the best of a coarse grid on maps 1000 to 1007 of the
15×15 grid with 9 traps; larger ones, such as those of the regime "strong", lock into loops."""


_SIDE_BY_SIDE: Mapping[str, Any] = {"n_envs": 32, "gamma": 0.999, "reward_scale": 1e-3}
STABLE_BASELINES_ON_GRIDWORLDS: Mapping[str, Mapping[str, Any]] = {
    "a2c": {**_SIDE_BY_SIDE, "learning_rate": 3e-3, "ent_coef": 0.003},
    "ppo": {
        **_SIDE_BY_SIDE,
        "n_steps": 32,
        "batch_size": 256,
        "n_epochs": 4,
        "learning_rate": 1e-3,
        "gae_lambda": 0.99,
        "ent_coef": 0.1,
    },
    "dqn": {"gamma": 0.999, "reward_scale": 1e-3},
    "prioritized-dqn": {"gamma": 0.999, "reward_scale": 1e-3},
}
"""Settings of Stable-Baselines3's algorithms on gridworlds: discount and scale of the rewards as
this package's agents have them, many environments side by side for speed, and the best of a few
settings (seven of A2C, eleven of PPO, one run each of 100,000 or 200,000 steps) on map 1000 of the
15×15 grid with 9 traps. With most of the others the policy learned to avoid the traps, and wandered
until the horizon."""


class Task(NamedTuple):
    """One algorithm on one map."""

    config: "CompareConfig"
    algorithm: str
    map: int

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.config.unit} {self.map}"


@dataclass(frozen=True)
class PolicyMap:
    """A learned policy and where it goes, for `policy_maps`.

    Attributes:
        policy: [S, 4] action probabilities.
        visits: [S] expected visits an episode.
        success: probability that an episode reaches a goal.
    """

    policy: FloatArray
    visits: FloatArray
    success: float


@dataclass(frozen=True)
class Trial:
    """What one algorithm did on one map.

    Attributes:
        algorithm: its label.
        map: number of the map, or the seed.
        metric: what `mean`, `final` and `curve` are: "success", or "return" where the environment
            does not say what success is.
        mean: of the target policy, over all trials.
        final: of the policy learned; exact where the transitions are known.
        steps: environment steps taken.
        seconds: wall-clock time of learning.
        curve: [BINS] the metric over the trials, or over the environment steps where these are
            what was limited.
        curve_steps: [BINS] environment steps taken by the end of each bin.
        target: P_w on the map, on a gridworld.
        exploration: Q_τ on the map, on a gridworld, where there is one.
    """

    algorithm: str
    map: int
    metric: str
    mean: float
    final: float
    steps: int
    seconds: float
    curve: FloatArray
    curve_steps: FloatArray
    target: PolicyMap | None = field(default=None, repr=False)
    exploration: PolicyMap | None = field(default=None, repr=False)

    @property
    def row(self) -> dict[str, Any]:
        """The trial as a row of `results.json`."""
        return {
            "algorithm": self.algorithm,
            "map": self.map,
            f"{self.metric}_mean": self.mean,
            f"{self.metric}_final": self.final,
            "steps": self.steps,
            "seconds": self.seconds,
            "curve": self.curve.tolist(),
            "curve_steps": self.curve_steps.tolist(),
        }


@one_thread()
def run_task(task: Task, send: Send) -> Trial:
    """Learn, and measure: the result is the same in any process, but for the seconds.

    Args:
        task: what learns where.
        send: called a few times a second with (task, how much of the budget is spent, in episodes
            or steps, recent success or return).
    """
    config = task.config
    env = config.make_env(task.map)
    grid = gridworld_of(env)
    agent = make_agent(task, env)
    unit: Literal["episodes", "timesteps"] = "episodes" if config.steps is None else "timesteps"
    sent = 0.0

    def follow(agent: Any) -> None:
        nonlocal sent
        complete_success(agent, grid, unit, config.budget)
        now = time.monotonic()
        if now - sent >= _SECONDS_BETWEEN_MESSAGES:
            sent = now
            spent = int(agent.history[unit][-1])
            send((str(task), spent, _recent(agent.history["success"], agent.history["return"])))

    seconds = learn(agent, unit, config.budget, follow)
    history = agent.history
    if not history.get("success") and grid is not None:  # all steps went into an endless episode
        steps = float(agent.num_timesteps)
        history = {"episodes": [1.0], "timesteps": [steps], "success": [0.0]}
    metric, values, mean = over_training(history, config.episodes if config.steps is None else None)
    curve = binned(history[unit], values, config.budget)
    target = exploration = None
    if grid is not None and task.algorithm not in ("dqn", "prioritized-dqn"):
        target = walk(grid, agent.policy_table())
        # Or Q_τ draws nothing, and nothing was learned for it.
        if getattr(agent, "exploration_share", 0.0):
            exploration = walk(grid, agent.exploration_table())
    if target is not None and metric == "success":
        final = target.success
    else:
        final = _evaluate(agent, lambda: config.make_env(task.map), metric, seed=task.map)
    env.close()
    first = task.map == config.seed
    return Trial(
        algorithm=task.algorithm,
        map=task.map,
        metric=metric,
        mean=mean,
        final=final,
        steps=int(agent.num_timesteps),
        seconds=seconds,
        curve=curve,
        curve_steps=_steps_by_bin(history, unit, config.budget),
        target=target if first else None,
        exploration=exploration if first else None,
    )


def over_training(
    history: Mapping[str, Sequence[float]], episodes: int | None
) -> tuple[str, Sequence[float], float]:
    """Return what to judge an agent by, its value for each entry, and the mean over all episodes.

    Args:
        history: an agent's.
        episodes: how many it was to learn from; None for those that it had.

    Raises:
        ValueError: no episode has ended.
    """
    if not history.get("success"):
        raise ValueError("no episode ended: nothing was measured, allow more steps")
    metric = "success" if np.isfinite(history["success"]).any() else "return"
    values, ends = history[metric], history["episodes"]
    return metric, values, float(binned(ends, values, episodes or int(ends[-1])).mean())


def make_agent(task: Task, env: "gym.Env[Any, Any]") -> Any:
    """Make the agent of a task, with its map for a seed.

    Raises:
        ValueError: the algorithm does not support the environment's spaces.
    """
    from gymnasium.spaces import Discrete

    from awsgd_rl import agents

    algorithm = ALGORITHMS[task.algorithm]
    if algorithm.agent == "StableBaselines":
        from awsgd_rl.agents.stable_baselines import StableBaselines

        tuned: Mapping[str, Any] = {}
        if gridworld_of(env) is not None:
            tuned = STABLE_BASELINES_ON_GRIDWORLDS.get(task.algorithm, {})
        return StableBaselines(
            task.algorithm, "MlpPolicy", env, seed=task.map, device="cpu", **tuned
        )
    discrete = isinstance(env.observation_space, Discrete) and isinstance(
        env.action_space, Discrete
    )
    policy = "TablePolicy" if discrete else "MlpPolicy"
    settings = dict(algorithm.settings)
    if task.config.regime == "paper":
        settings.update(PAPER_REGIME)
        if policy == "TablePolicy":
            settings["learning_rate"] = PAPER_LEARNING_RATES[task.algorithm]
    if task.algorithm == "reinforce-equal":
        settings["updates"] = agents.AWSGD.defaults(policy, agents.AWSGDConfig())["updates"]
    agent_class = getattr(agents, algorithm.agent)
    return agent_class(
        policy,
        # Networks learn in a vector environment, which is made from an id.
        env if task.config.env is None else task.config.env,
        seed=task.map,
        device="cpu",
        **settings,
    )


def binned(episodes: ArrayLike, values: ArrayLike, total: int, bins: int = BINS) -> FloatArray:
    """Return [bins] means of a quantity over equal shares of `total` episodes.

    Args:
        episodes: [K] episodes done at the end of each batch, increasing.
        values: [K] mean over the batch's episodes; NaN, unknown, takes the last known.
        total: episodes that the bins divide; the last value stands for any that are missing.
        bins: number of bins. Their mean is the mean over all episodes.

    Raises:
        ValueError: no value is known.
    """
    ends = np.asarray(episodes, dtype=np.float64)
    means = np.asarray(values, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(means))
    if not len(known):
        raise ValueError("got no finite value: nothing was measured")
    last_known = np.searchsorted(known, np.arange(len(means)), side="right") - 1
    means = means[known[np.maximum(last_known, 0)]]
    if ends[-1] < total:
        ends, means = np.append(ends, total), np.append(means, means[-1])
    sums = np.concatenate([[0.0], np.cumsum(means * np.diff(ends, prepend=0.0))])
    edges = np.linspace(0.0, total, bins + 1)
    at_edges = np.interp(edges, np.concatenate([[0.0], ends]), sums)
    shares: FloatArray = np.diff(at_edges) * bins / total
    return shares


def walk(env: "TrapGridworld", policy: FloatArray) -> PolicyMap:
    """Follow a policy [S, 4] on the gridworld exactly: where it goes, and how often it succeeds.

    The distribution over states is moved forward step by step until the horizon, or until less than
    1e-12 of it is still on its way.
    """
    from scipy.sparse import csr_array

    states, actions = policy.shape
    row = np.repeat(np.arange(states), actions)
    choice = csr_array((policy.ravel(), (row, np.arange(states * actions))))
    forward: Any = (choice @ env.transition_matrix()).T.tocsr()
    visits = np.zeros(states)
    here = np.zeros(states)
    here[env.start] = 1.0
    for _ in range(env.horizon + 1):
        visits += here
        here = forward @ here
        if here.sum() < 1e-12:
            break
    return PolicyMap(policy, visits, float(visits[env.goal_cells].sum()))


def gridworld_of(env: "gym.Env[Any, Any]") -> "TrapGridworld | None":
    """Return the gridworld that an environment wraps, if it is one."""
    from awsgd_rl.envs import TrapGridworld

    grid = env.unwrapped
    return grid if isinstance(grid, TrapGridworld) else None


def complete_success(agent: Any, grid: "TrapGridworld | None", unit: str, total: int) -> None:
    """Compute the last batch's success where no episode tells it, once a bin, on a gridworld.

    It is written into the agent's history, to be part of its checkpoints.
    """
    success = agent.history["success"]
    if np.isnan(success[-1]) and grid is not None and is_new_bin(agent.history[unit], total):
        # Nothing but Q_τ draws episodes (Algorithm 2): what P_w would do is computed.
        success[-1] = walk(grid, agent.policy_table()).success


def is_new_bin(ends: list[float], total: int) -> bool:
    """Return whether the last batch is the first one, or ended in another bin than that before."""
    bins = [int(BINS * end / total) for end in ends[-2:]]
    return len(set(bins)) == len(bins)


def _steps_by_bin(history: Mapping[str, list[float]], unit: str, total: int) -> FloatArray:
    """Return [BINS] environment steps taken by the end of each bin."""
    ends = total * np.arange(1, BINS + 1) / BINS
    steps: FloatArray = np.interp(ends, [0.0, *history[unit]], [0.0, *history["timesteps"]])
    return steps


def _recent(success: list[float], returns: list[float]) -> float:
    """Return the mean of the last successes that are known, or else of the last returns."""
    for values in (success[-20:], returns[-20:]):
        known = [value for value in values if np.isfinite(value)]
        if known:
            return float(np.mean(known))
    return np.nan


def _evaluate(
    agent: Any, make_env: "Callable[[], gym.Env[Any, Any]]", metric: str, seed: int
) -> float:
    """Return the mean success or return of `FINAL_EPISODES` fresh episodes of the target policy.

    Several environments side by side: the policy acts in all of them at once.
    """
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import DummyVecEnv

    successes: list[float] = []

    def follow(step: Mapping[str, Any], _: object) -> None:
        if step["done"]:
            successes.append(float(step["info"].get("is_success", np.nan)))

    envs = DummyVecEnv([make_env] * min(_FINAL_ENVS, FINAL_EPISODES))
    envs.seed(seed)
    returns, _ = evaluate_policy(
        agent,
        envs,
        FINAL_EPISODES,
        deterministic=False,
        callback=follow if metric == "success" else None,
        return_episode_rewards=True,
        warn=False,
    )
    envs.close()
    return float(np.nanmean(successes if metric == "success" else returns))
