"""Rollouts by workers, for one AW-SGD learner: the batches are the same for any number of workers.

    with RolloutWorkers(agent, workers=2, lag=1):
        agent.learn(total_episodes=10_000)

A batch is cut into chunks of `chunk_size` episodes. What a chunk draws depends on the agent's seed,
on the batch's and the chunk's number, and on the parameters; not on who draws it, nor when.

*Lag.* Batch k is drawn with the parameters as they were before update k − L (L the lag; the first
ones, for the first L batches): so the workers draw batch k while the learner learns from the L
before. L is fixed, not whatever the machine makes of it, and the run is the same bit for bit
wherever it takes place.

*Weights.* Each trajectory travels with the log density that it was drawn with: that of the mixture
(1 − α) P_w + α Q_τ of *that* time. The update weighs it by p_now / drawn. Since batch k is
independent of all that was learned between, given the parameters that drew it, the step of the
variants "mixture" and "paper" is unbiased, however stale the batch. What is lost is a bound: it is
1 / (1 − α) at lag 0, there is none beyond, and the effective sample size (`history["ess"]`) falls
as P_w moves in L updates. Weighing by the present mixture in place of `drawn` would be biased.

The variant "replay" treats a stale batch as it treats any past one: ratios are truncated at
`ratio_clip` (of whole trajectories with tables, of single steps with networks), its one bias
beside the critic's; an infinite `ratio_clip` removes it. (`history`'s ess and return are then of
truncated weights, and with networks of unweighted trajectories.) Q_τ learns by the same ratios;
where τ makes steps of its own their direction is that for the mixture that drew, which is not
quite the present one: any Q_τ leaves the gradient of P_w unbiased.
"""

import copy
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple, Self

import gymnasium as gym
import torch
from torch import Tensor

from awsgd_rl import validation
from awsgd_rl.agents.rollout_episodes import EpisodeSampler
from awsgd_rl.agents.rollout_pool import Job, Traffic, WorkerPool
from awsgd_rl.agents.rollout_samplers import Chunk, GridSampler, Parameters, Sampler, split
from awsgd_rl.agents.rollout_workers import (
    Answering,
    Failure,
    ProcessEngine,
    RayEngine,
    RolloutError,
)
from awsgd_rl.agents.training_file import Layout, layout_of

__all__ = ["RolloutError", "RolloutWorkers", "Traffic"]

ENGINES = ("local", "ray")


class Version(NamedTuple):
    """The parameters before one update: as arrays, and as workers take them."""

    parameters: Parameters
    message: Any
    size: int


class RolloutWorkers:
    """Draws an agent's batches from now on, until it is closed (as a context, at its end).

    The environment must be one that `reset(seed=...)` brings to the same state whatever happened
    before, as Gymnasium asks for: then a chunk that is drawn again is the same.

    Args:
        agent: an AW-SGD agent, or, with lag 0, a REINFORCE one.
        workers: how many processes or actors; 0 draws the same batches in the learner's process.
        lag: L, updates between the parameters that draw a batch and those that it is learned from.
            0: the learner waits for each batch, and the workers for each update.
        chunk_size: episodes a chunk. Part of what names the random streams: another one gives
            other batches.
        engine: "local", processes of this machine, or "ray".
        address: of a running Ray cluster; None for one on this machine.
        make_env: makes the environment, where the agent's has no spec that a worker could make it
            from: a function at the top level of a module.

    Attributes:
        traffic: bytes and episodes so far.
        waited: seconds that the learner has waited for batches.
        batch: the next batch's number.
        started: episodes that the agent had run when batch 0 came.

    Raises:
        ValueError: an argument is out of range or does not fit the agent, there is no Ray at the
            address, or the environment cannot be sent to a worker.
        ImportError: Ray is not installed.
    """

    def __init__(
        self,
        agent: Any,
        workers: int = 1,
        *,
        lag: int = 1,
        chunk_size: int = 4,
        engine: Literal["local", "ray"] = "local",
        address: str | None = None,
        make_env: Callable[[], gym.Env[Any, Any]] | None = None,
    ) -> None:
        validation.require_integer("workers", workers, minimum=0)
        self.lag = validation.require_integer("lag", lag, minimum=0)
        self.chunk_size = validation.require_integer("chunk_size", chunk_size)
        validation.require_name("engine", engine, ENGINES)
        if address is not None and engine != "ray":
            raise ValueError(f"got address={address!r} for engine='local': pass engine='ray'")
        _check_agent(agent, lag)
        self.agent = agent
        self.sampler = make_sampler(agent, chunk_size, make_env)
        self.batch = 0
        self.waited = 0.0
        self.started = agent.num_episodes
        self._versions: dict[int, Version] = {}
        self._orders: dict[int, list[Job]] = {}
        self._here = Answering(self.sampler)
        self._here_version = -1
        self._pool: WorkerPool | None = None
        if workers:
            self._pool = WorkerPool(
                RayEngine(self.sampler, workers, address)
                if engine == "ray"
                else ProcessEngine(self.sampler),
                workers,
            )
        agent.learner.rollouts = self
        if lag:
            agent.lag = lag

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; the agent draws its batches itself again."""
        if self.agent.learner.rollouts is not self:
            return
        self.agent.learner.rollouts = None
        if self.lag:
            self.agent.lag = 0
        if self._pool is not None:
            self._pool.close()
        self.sampler.close()

    @property
    def traffic(self) -> Traffic:
        """What learner and workers have sent each other."""
        return Traffic() if self._pool is None else self._pool.traffic

    def collect(self, n_target: int, n_exploration: int) -> Any:
        """Return the next batch, and let those after it be drawn.

        Args:
            n_target: episodes by P_w.
            n_exploration: episodes by Q_τ.

        Raises:
            RolloutError: a worker's environment raised, or three workers were lost at one chunk.
        """
        now = self.sampler.snapshot(self.agent.learner)
        self._versions[self.batch] = self._published(now)
        begun = time.perf_counter()
        if self._pool is None:
            parts = [self._draw_here(chunk) for chunk in self._chunks(n_target, n_exploration)]
        else:
            # Guesses that later batches are as large as this one; where not, they are ordered anew.
            for batch in range(self.batch, self.batch + self.lag + 1):
                self._order(self._pool, batch, n_target, n_exploration)
            parts = self._pool.finish(self._orders.pop(self.batch))
        self.waited += time.perf_counter() - begun
        self.batch += 1
        for version in [v for v in self._versions if v < self.batch - self.lag]:
            del self._versions[version]
        return self.sampler.join(self.agent.learner, parts, n_target)

    def training_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what `restore_training` needs, between two batches: tensors, and JSON values.

        Batches under way are not part of it: they are drawn again, with the parameters of that
        time, which are (`version0.…` the oldest).
        """
        values = {name: getattr(self, name) for name in ("lag", "chunk_size", "batch", "started")}
        # A batch that could not be drawn has left its version behind, which will be made anew.
        held = sorted(version for version in self._versions if version < self.batch)
        return {
            f"version{age}.{name}": torch.from_numpy(array.copy())
            for age, version in enumerate(held)
            for name, array in self._versions[version].parameters.items()
        }, values

    def training_layout(self, names: Collection[str]) -> Layout:
        """Return what `training_state` may return: types and shapes, given its tensors' names."""
        one = self.sampler.snapshot(self.agent.learner)
        ages = {name.partition(".")[0] for name in names} & {
            f"version{age}" for age in range(self.lag)
        }
        tensors = {name: torch.from_numpy(array) for name, array in one.items()}
        return {
            f"{age}.{name}": layout
            for age in sorted(ages)
            for name, layout in layout_of(tensors).items()
        }

    def restore_training(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what `training_state` returned; the tensors fit `training_layout`.

        Raises:
            ValueError: it is of another lag or chunk size, or damaged; nothing has changed then.
        """
        batch, held, names = self.check_training_state(tensors, values)
        for jobs in self._orders.values():
            for job in jobs:
                job.unwanted = True
        self._orders.clear()
        self._here_version = -1
        self.batch, self.started = batch, values["started"]
        self._versions = {
            version: self._published(
                {name: tensors[f"version{age}.{name}"].numpy().copy() for name in names}
            )
            for age, version in enumerate(held)
        }

    def check_training_state(
        self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> tuple[int, range, list[str]]:
        """Check what is to be given to `restore_training`; nothing changes.

        Returns:
            The next batch, the versions that are held, and the names of each one's parameters.

        Raises:
            ValueError: as `restore_training`.
        """
        for name in ("lag", "chunk_size", "batch", "started"):
            if not isinstance(values.get(name), int) or values[name] < 0:
                raise ValueError(f"got {values.get(name)!r} for the rollouts' {name}: damaged")
        if (values["lag"], values["chunk_size"]) != (self.lag, self.chunk_size):
            raise ValueError(
                f"got lag={self.lag} and chunk_size={self.chunk_size}, but the run had "
                f"{values['lag']} and {values['chunk_size']}: other batches would follow, go on "
                "with the same"
            )
        batch = values["batch"]
        held = range(max(batch - self.lag, 0), batch)
        names = list(self.sampler.snapshot(self.agent.learner))
        wanted = {f"version{age}.{name}" for age in range(len(held)) for name in names}
        if wanted != tensors.keys() or not all(bool(x.isfinite().all()) for x in tensors.values()):
            raise ValueError(
                f"got parameters of {len(tensors)} names, expected {len(wanted)} of finite "
                f"numbers: those of the last {len(held)} versions"
            )
        return batch, held, names

    def _published(self, parameters: Parameters) -> Version:
        message = (None, 0) if self._pool is None else self._pool.engine.publish(parameters)
        return Version(parameters, *message)

    def _chunks(self, n_target: int, n_exploration: int, batch: int | None = None) -> list[Chunk]:
        batch = self.batch if batch is None else batch
        key = (self.agent.seed, self.started)
        return list(split(key, batch, n_target, n_exploration, self.chunk_size))

    def _order(self, pool: WorkerPool, batch: int, n_target: int, n_exploration: int) -> None:
        chunks = self._chunks(n_target, n_exploration, batch)
        ordered = self._orders.get(batch, [])
        if [job.chunk for job in ordered] == chunks:
            return
        for job in ordered:
            job.unwanted = True
        version = self._version_of(batch)
        held = self._versions[version]
        self._orders[batch] = [Job(chunk, version, held.message, held.size) for chunk in chunks]
        for job in self._orders[batch]:
            pool.submit(job)

    def _draw_here(self, chunk: Chunk) -> Any:
        version = self._version_of(chunk.batch)
        new = version != self._here_version
        parameters = self._versions[version].parameters if new else None
        answer = self._here.answer(parameters, chunk)
        if isinstance(answer, Failure):
            raise answer.error(chunk)
        self._here_version = version
        return answer

    def _version_of(self, batch: int) -> int:
        return max(batch - self.lag, 0)


def make_sampler(agent: Any, chunk_size: int, make_env: Any = None) -> Sampler:
    """Return what draws an agent's episodes; arguments as of `RolloutWorkers`.

    Raises:
        ValueError: the environment has no spec that a worker could make it from.
    """
    from awsgd_rl.agents.tabular import TabularLearner

    learner, config = agent.learner, agent.config
    explores = agent.exploration_share > 0.0
    if isinstance(learner, TabularLearner):
        return GridSampler(learner.grid, learner.discount, learner.reward_to_go, explores)
    return EpisodeSampler(
        _describe(agent.env) if make_env is None else make_env,
        config.horizon,
        min(chunk_size, config.n_envs),
        learner.kind,
        tuple(config.hidden_sizes),
        explores,
    )


def _describe(env: Any) -> gym.envs.registration.EnvSpec:
    spec = gym.spec(env.rpartition(":")[2]) if isinstance(env, str) else env.spec
    vector = isinstance(env, gym.vector.VectorEnv)
    if spec is None or vector or any(w.kwargs is None for w in spec.additional_wrappers):
        raise ValueError(
            f"workers cannot make {env} again, expected an id or an environment of gym.make: pass "
            "make_env=, a function at the top level of a module that makes one"
        )
    spec = copy.deepcopy(spec)
    spec.kwargs.pop("render_mode", None)  # nobody is looking
    return spec


def _check_agent(agent: Any, lag: int) -> None:
    learner: Any = getattr(agent, "learner", None)
    if not hasattr(learner, "rollouts"):
        raise ValueError(
            f"rollout workers serve the agents 'awsgd' and 'reinforce', got "
            f"{getattr(agent, 'name', type(agent).__name__)!r}"
        )
    if learner.rollouts is not None:
        raise ValueError("this agent has rollout workers already: close them first")
    if lag and not hasattr(agent, "lag"):
        raise ValueError(
            f"got lag={lag} for {agent.name!r}, which does not weigh trajectories by the density "
            "that they were drawn with: pass lag=0, or use 'awsgd'"
        )
