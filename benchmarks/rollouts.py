"""Where rollout workers pay: seconds a batch, by how long the environment takes for a step.

CartPole with a wait in each step, as of a simulator on another machine or of hardware: a wait costs
no processor, so that the numbers tell how well waiting and learning are done at once, on any
machine. With no wait they tell what workers cost.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import gymnasium as gym

from awsgd_rl.benchmarks.workers import Progress, one_thread

WAITS: Final = (0.0, 0.0005, 0.005)
WORKERS: Final = (0, 1, 2)
_HORIZON: Final = 30
_BATCH: Final = 8


class Slow(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose step takes a while.

    Args:
        env: what is wrapped.
        wait: seconds.
    """

    def __init__(self, env: gym.Env[Any, Any], wait: float) -> None:
        super().__init__(env)
        self.wait = wait

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Wait, then step."""
        time.sleep(self.wait)
        return self.env.step(action)


@dataclass(frozen=True)
class MakeSlow:
    """Makes the environment, in a worker too."""

    wait: float

    def __call__(self) -> gym.Env[Any, Any]:
        """Return it."""
        return Slow(gym.make("CartPole-v1", max_episode_steps=_HORIZON), self.wait)


class Measurement(NamedTuple):
    """What a run with rollout workers has taken, after its first batch.

    Attributes:
        seconds_per_batch: from one batch to the next.
        learner_share: share of the time in which the learner learned rather than waited.
        bytes_per_trajectory: sent by workers; 0 without.
        bytes_per_version: sent to a worker before it draws with other parameters; 0 without.
        mean_length: steps of an episode.
    """

    seconds_per_batch: float
    learner_share: float
    bytes_per_trajectory: float
    bytes_per_version: float
    mean_length: float


def measure(
    agent: Any,
    workers: int,
    *,
    batches: int = 10,
    lag: int = 1,
    make_env: Callable[[], gym.Env[Any, Any]] | None = None,
) -> Measurement:
    """Let an agent learn with so many workers, 0 for draws in this process.

    Args:
        agent: one that has not learned yet.
        workers: how many.
        batches: how many are measured, after a first one, in which the workers start.
        lag: of the workers.
        make_env: as of `RolloutWorkers`.
    """
    from awsgd_rl.agents.distributed import RolloutWorkers

    n = agent.config.batch_size
    with one_thread(), RolloutWorkers(agent, workers, lag=lag, make_env=make_env) as rollouts:
        agent.learn(total_episodes=n)
        waited, begun = rollouts.waited, time.perf_counter()
        agent.learn(total_episodes=n * batches)
        seconds = time.perf_counter() - begun
        waited = rollouts.waited - waited
        traffic = rollouts.traffic
        received = traffic.received / max(traffic.episodes, 1)
        size = rollouts.version_bytes
    length = agent.num_timesteps / agent.num_episodes
    share = 1.0 - waited / seconds
    return Measurement(seconds / batches, share, received, float(size), length)


def run(
    quick: bool = False, *, progress: Progress = lambda share, text: None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure every wait with every number of workers.

    Args:
        quick: once, and few batches.
        progress: called with the share that is done, and what comes next.

    Returns:
        A row for each measurement (`wait`, `workers`, `repeat`, and a `Measurement`), and
        the summary: `speedup_<workers>_at_<wait in microseconds>us` over draws in the learner's
        process, of means, and `bytes_per_step`.
    """
    from awsgd_rl.agents import AWSGD

    repeats, batches = (1, 3) if quick else (5, 20)
    steps = [(wait, n, repeat) for repeat in range(repeats) for wait in WAITS for n in WORKERS]
    rows: list[dict[str, Any]] = []
    for done, (wait, workers, repeat) in enumerate(steps):
        progress(done / len(steps), f"{wait:g} s a step, {workers} workers")
        env = gym.make("CartPole-v1", max_episode_steps=_HORIZON)
        agent = AWSGD("MlpPolicy", env, seed=repeat, device="cpu", batch_size=_BATCH)
        measured = measure(agent, workers, batches=batches, make_env=MakeSlow(wait))
        row = {"wait": wait, "workers": workers, "repeat": repeat}
        rows.append({**row, **measured._asdict()})
    return rows, summarise(rows)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the summary of `run`."""

    def mean(name: str, wait: float, workers: int) -> float:
        own = [row for row in rows if (row["wait"], row["workers"]) == (wait, workers)]
        return sum(float(row[name]) for row in own) / len(own)

    summary = {}
    for wait in WAITS:
        alone = mean("seconds_per_batch", wait, 0)
        for workers in WORKERS[1:]:
            name = f"{workers}_at_{wait * 1e6:.0f}us"
            summary[f"speedup_{name}"] = alone / mean("seconds_per_batch", wait, workers)
            summary[f"learner_share_{name}"] = mean("learner_share", wait, workers)
    lengths = mean("mean_length", WAITS[0], 1)
    summary["bytes_per_step"] = mean("bytes_per_trajectory", WAITS[0], 1) / lengths
    return summary
