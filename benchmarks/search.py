"""What is tuned, and how one setting is measured: the part of `awsgd-rl tune` without Optuna.

Every algorithm gets as many trials on the same maps, its default the first of them. The maps are
none of those that `compare` reports on, and what was found is measured again on others still: the
best of many trials is better on the maps that it was chosen on than anywhere else.

Importing this module is cheap: PyTorch, numba and Matplotlib come with the first computation.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.agents.search_spaces import Choices, Space, read_spaces, resolve
from awsgd_rl.benchmarks.compare import CompareConfig
from awsgd_rl.benchmarks.resumable import learn
from awsgd_rl.benchmarks.trial import Task as CompareTask
from awsgd_rl.benchmarks.trial import complete_success, gridworld_of, make_agent, over_training
from awsgd_rl.benchmarks.workers import Send, one_thread
from awsgd_rl.validation import require_integer

FIRST_SEED: Final = 1000
"""`compare` reports on the seeds below."""
CHECK_OFFSET: Final = 500
"""From the seeds that settings are chosen on to those that they are measured on again."""


@dataclass(frozen=True)
class TuneConfig(CompareConfig):
    """What is tuned, on which task, with how many trials.

    Raises:
        ValueError: a setting is out of range, unknown, or contradicts another.
    """

    maps: int = 4
    """Number of maps that each setting learns on; for `env`, of seeds."""
    episodes: int = 20_000
    """Episodes that each setting learns from on each map."""
    seed: int = FIRST_SEED
    """The maps are seed, seed + 1, ...; 1000 or more, since those below are compare's."""
    trials: int = 20
    """Settings that are tried of each algorithm, its default the first."""
    check_maps: int = 4
    """Maps that the best setting and the default are measured on afterwards, seed + 500, ...;
    0: none."""
    space: str = "{}"
    """What is searched of some algorithms in place of what stands above, as JSON:
    {"awsgd": {"learning_rate": {"low": 4, "high": 32, "log": true}, "memory": {"choices": [40,
    100]}}}."""
    batch: int = 5
    """Trials of an algorithm that are suggested at once, and run side by side. The result depends
    on it, but not on the number of processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("trials", self.trials)
        require_integer("check_maps", self.check_maps, minimum=0)
        require_integer("batch", self.batch)
        if self.seed < FIRST_SEED:
            raise ValueError(
                f"seed is {self.seed}, expected {FIRST_SEED} or more: compare reports on the seeds "
                "below, and what is tuned on those looks better there than it is"
            )
        for name in ("maps", "check_maps"):
            if getattr(self, name) > CHECK_OFFSET:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected {CHECK_OFFSET} or less"
                )
        read_spaces(self.space, self.algos)

    @property
    def seeds(self) -> range:
        """The maps that settings are chosen on."""
        return range(self.seed, self.seed + self.maps)

    @property
    def check_seeds(self) -> range:
        """The maps that the best settings are measured on again."""
        first = self.seed + CHECK_OFFSET
        return range(first, first + self.check_maps)


class Subject(NamedTuple):
    """An algorithm whose options are tuned.

    Attributes:
        label: its name in `compare --algos`.
        algorithm: its name in `train --algo`.
        policy: "TablePolicy" or "MlpPolicy".
        defaults: all its options.
        space: where those that are tuned may lie.
    """

    label: str
    algorithm: str
    policy: str
    defaults: Mapping[str, Any]
    space: Space

    @property
    def default_options(self) -> dict[str, Any]:
        """The options that are tuned, at their defaults."""
        return {name: self.defaults[name] for name in self.space}


class Task(NamedTuple):
    """One setting of one algorithm on one map."""

    config: TuneConfig
    subject: Subject
    number: int
    options: Mapping[str, Any]
    map: int

    def __str__(self) -> str:
        where = f"{self.config.unit} {self.map}"
        return f"{self.subject.label}, trial {self.number} {dict(self.options)} on {where}"


class Outcome(NamedTuple):
    """What a task came to.

    Attributes:
        task: which.
        metric: "success" or "return".
        mean: of the target policy over all episodes; NaN if it failed.
        seconds: wall-clock time of learning.
        error: why it failed, or "".
    """

    task: Task
    metric: str
    mean: float
    seconds: float
    error: str = ""


def make_subject(config: TuneConfig, label: str) -> Subject:
    """Find out what an algorithm's options are on a task, and what of them is searched.

    Raises:
        ValueError: the task cannot be made, or the space does not fit the algorithm.
    """
    from awsgd_rl.agents.learner import compiled_grid

    env = config.make_env(config.seed)
    agent = make_agent(CompareTask(config, label, config.seed), env)
    algorithm = agent.algorithm if hasattr(agent, "algorithm") else agent.name
    policy = getattr(agent, "policy", "MlpPolicy")
    defaults = asdict(agent.config)
    given = read_spaces(config.space, config.algos).get(label)
    grid = compiled_grid(policy, env, agent.config) is not None
    space = resolve(label, defaults, grid=grid, given=given)
    subject = Subject(label, algorithm, policy, defaults, space)
    if given is not None:
        _check_ends(config, subject, env)
    env.close()
    return subject


@one_thread()
def measure(task: Task, _send: Send) -> Outcome:
    """Learn with one setting: `Outcome.mean` is what `compare` calls `<algo>.success_mean`.

    A setting that an agent refuses, or comes to grief with, is a result, not an error.
    """
    started = time.perf_counter()
    try:
        metric, mean, seconds = _learn(task)
        error = "" if np.isfinite(mean) else f"the mean {metric} is {mean}"
    except (ArithmeticError, RuntimeError, ValueError) as raised:
        metric, mean, error = "", np.nan, f"{type(raised).__name__}: {raised}"
        seconds = time.perf_counter() - started
    return Outcome(task, metric, mean, seconds, error)


def _learn(task: Task) -> tuple[str, float, float]:
    config = task.config
    env = config.make_env(task.map)
    grid = gridworld_of(env)
    settings = {**task.subject.defaults, **task.options}
    agent = make_tuned_agent(config, task.subject, settings, env, task.map)
    unit: Literal["episodes", "timesteps"] = "episodes" if config.steps is None else "timesteps"

    def follow(agent: Any) -> None:
        complete_success(agent, grid, unit, config.budget)

    seconds = learn(agent, unit, config.budget, follow)
    env.close()
    if not agent.history.get("success") and grid is not None:  # all went into an endless episode
        return "success", 0.0, seconds
    metric, _, mean = over_training(
        agent.history, config.episodes if config.steps is None else None
    )
    return metric, mean, seconds


def make_tuned_agent(
    config: TuneConfig, subject: Subject, settings: Mapping[str, Any], env: Any, seed: int
) -> Any:
    """Make an agent of a subject with these settings, and its own defaults for the others.

    Raises:
        ValueError: it does not take them.
    """
    from awsgd_rl import agents

    # Networks learn in a vector environment, which is made from an id.
    where = env if config.env is None else config.env
    return agents.make_agent(
        subject.algorithm, subject.policy, where, seed=seed, device="cpu", **settings
    )


def _check_ends(config: TuneConfig, subject: Subject, env: Any) -> None:
    """Refuse a space with values that the algorithm does not take."""
    for name, space in subject.space.items():
        values = space.values if isinstance(space, Choices) else (space.low, space.high)
        for value in values:
            try:
                make_tuned_agent(config, subject, {**subject.defaults, name: value}, env, 0)
            except (TypeError, ValueError) as error:
                raise ValueError(f"space of {subject.label}.{name} is {space}: {error}") from None


@dataclass(frozen=True)
class Tried:
    """One trial: a setting and what it came to.

    Attributes:
        number: 0 is the default.
        options: the options that are tuned.
        state: "complete", "pruned" (its last maps were not worth it) or "failed".
        values: [maps measured] the metric on each of the first maps.
        seconds: time of learning on all of them.
        error: why it failed, or "".
    """

    number: int
    options: Mapping[str, Any]
    state: str
    values: NDArray[np.float64]
    seconds: float
    error: str


@dataclass(frozen=True)
class Tuned:
    """All trials of an algorithm.

    Attributes:
        subject: the algorithm.
        metric: "success" or "return".
        trials: by number.
        importances: share of the variance that each option explains; empty if too few were tried.
        check: [check maps] the metric on other maps, by the trial's number: of the best trial and
            of the default; [0] of one that failed on one of them.
    """

    subject: Subject
    metric: str
    trials: tuple[Tried, ...]
    importances: Mapping[str, float]
    check: Mapping[int, NDArray[np.float64]]

    @property
    def best(self) -> Tried:
        """The trial with the largest mean over all maps, the first of equals."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return max(complete, key=lambda trial: (trial.values.mean(), -trial.number))
