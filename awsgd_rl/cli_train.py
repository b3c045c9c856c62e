"""`awsgd-rl train`: one agent on one environment."""

import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from tyro.conf import arg

from awsgd_rl.agents import ALGORITHMS, make_agent
from awsgd_rl.agents.snapshots import SnapshotRecorder, write_history
from awsgd_rl.cli_checkpoints import (
    CheckpointOptions,
    begin,
    how_to_go_on,
    make_checkpoints,
    remove_checkpoints,
    stored_config,
    stored_options,
    value_of,
)
from awsgd_rl.cli_common import RunOptions, UsageError, bad_usage, parse, run_folder
from awsgd_rl.cli_environment import (
    Episodes,
    choose_device,
    choose_env,
    device_of,
    make_env,
    read_env_kwargs,
    run_episodes,
    summarise,
)
from awsgd_rl.cli_output import Output, summary_rows
from awsgd_rl.cli_wandb import WandbOptions, check_wandb, wandb_run
from awsgd_rl.runs import RESULTS_FILE
from awsgd_rl.validation import require_integer, require_name

POLICIES: Final = ("TablePolicy", "MlpPolicy")
_CURVE_POINTS: Final = 100

DESCRIPTION = f"""Train one agent on one environment.

Options of the algorithm follow the common ones: --algo ppo --help shows PPO's.

A checkpoint is written every minute and at Ctrl-C, so that a run that was
stopped, however it was, goes on with --resume. awsgd and reinforce then end
with the same numbers as if it had never been (on the CPU, bit for bit). The
others go on with all that they had learned, their replay buffer included, but
drop the episode that they were in and begin a new one: numbers differ.
Checkpoints are kept until the run is done.

algorithms:
{chr(10).join(f"  {name:<15} {entry.description}" for name, entry in ALGORITHMS.items())}

examples:
  awsgd-rl train                                          AW-SGD on the 15x15 trap gridworld
  awsgd-rl train --algo reinforce --preset 50/25 --total-episodes 20000
  awsgd-rl train --algo awsgd --env CartPole-v1 --total-timesteps 100000
  awsgd-rl train --env-kwargs '{{"size": 8, "traps": 6, "slip": 0.1}}' --learning-rate 2
  awsgd-rl train --out runs/long --resume                 go on where it stopped
  awsgd-rl train --env CartPole-v1 --rollout-workers 2    episodes drawn by two processes
"""


@dataclass(frozen=True)
class TrainOptions:
    """What learns where."""

    algo: str = "awsgd"
    """The algorithm; `awsgd-rl list` shows all."""
    env: str | None = None
    """Gymnasium id. Default: awsgd_rl/TrapGridworld-v0."""
    env_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Arguments of the environment, a JSON object."""
    preset: str | None = None
    """A named map size in place of --env, such as 15/9; `awsgd-rl list` shows all."""
    policy: str | None = None
    """TablePolicy or MlpPolicy. Default: a table for Discrete observations (but for SB3's)."""
    total_timesteps: int | None = None
    """Environment steps to learn from. Default with networks: 100,000."""
    total_episodes: int | None = None
    """Episodes to learn from, in place of --total-timesteps. Default with tables: 20,000."""
    eval_episodes: int = 100
    """Episodes that measure the policy learned, 0 for none."""
    seed: int = 0
    """Seed of all randomness, 0 or more: the same seed gives the same result."""
    device: str = "auto"
    """auto, cpu or cuda."""
    rollout_workers: int | None = None
    """Processes that draw the episodes while the learner learns (awsgd; with --rollout-lag 0
    reinforce). The result is the same for any number, 0 for none included, and another one than
    without this option. It pays where the environment is slow."""
    rollout_lag: int = 1
    """Updates between the policies that draw a batch and those that learn from it, with
    --rollout-workers. 0: learner and workers wait for each other."""


@dataclass(frozen=True)
class RolloutOptions:
    """Where --rollout-workers run."""

    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine. ray: Ray (pip install 'awsgd-rl[ray]'), on this machine or
    a cluster. The results are the same."""
    address: str | None = None
    """Ray cluster that this machine is part of, HOST:PORT or auto. Default: a Ray is started here,
    for this run."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    with contextlib.ExitStack() as sending:
        _train(argv, sending)


def _train(argv: Sequence[str], sending: contextlib.ExitStack) -> None:
    with bad_usage():
        stored = stored_config(argv)
        config_class = _config_class(_chosen_algorithm(argv, stored))
    asked: TrainOptions
    drawing: RolloutOptions
    stopping: CheckpointOptions
    tracking: WandbOptions
    options: RunOptions
    groups = (TrainOptions, config_class, RolloutOptions, CheckpointOptions, WandbOptions)
    asked, agent_config, drawing, stopping, tracking, options = parse(
        "train", argv, DESCRIPTION, *groups, RunOptions
    )
    settings = {f.name: getattr(agent_config, f.name) for f in dataclasses.fields(agent_config)}
    out = Output(quiet=options.quiet)
    with run_folder(options, "train", resume=stopping.resume) as start:
        if stopping.resume:
            asked, settings = stored_options(stored, asked, settings, type(agent_config))
            if (start.path / RESULTS_FILE).exists():
                out.line(f"{start.path} is finished: nothing is left to do")
                return
        _check_numbers(asked)
        check_wandb(tracking.wandb)
        checkpoints = make_checkpoints(start.path, stopping)
        env_id = choose_env(asked.env, asked.preset)
        kwargs = read_env_kwargs(asked.env_kwargs)
        env = make_env(env_id, kwargs)
        policy = _choose_policy(asked, env)
        total = _choose_total(asked, policy)
        agent = make_agent(
            asked.algo,
            policy,
            env,
            seed=asked.seed,
            device=choose_device(asked.device),
            log_dir=start.path,
            tensorboard_log=start.path / "tensorboard",
            **settings,
        )
        config = {
            "algo": asked.algo,
            "env": env_id,
            "env_kwargs": asked.env_kwargs,
            "policy": policy,
            **total,
            "eval_episodes": asked.eval_episodes,
            "seed": asked.seed,
            "device": asked.device,
            "rollout_workers": asked.rollout_workers,
            "rollout_lag": asked.rollout_lag,
        }
        rollouts = _make_rollouts(agent, asked, drawing)
        folder = start({**config, **_spelled(dataclasses.asdict(agent.config))})
        done = begin(agent, folder.path, checkpoints, resume=stopping.resume)
        recorder = _recorder(agent, folder.path, total)
        sending.enter_context(wandb_run(tracking.wandb, folder, quiet=options.quiet))
    out.line(f"train: {asked.algo} with {policy} on {env_id}{done}")
    go_on = how_to_go_on(folder.path)
    try:
        with rollouts:
            stopped = _learn(agent, total, out, checkpoints, recorder)
    except KeyboardInterrupt:  # the second one, within a batch
        raise KeyboardInterrupt(go_on) from None
    if agent.history.get("episodes"):
        write_history(folder.path, agent.history)
    agent.save(folder.path / "agent")
    written = [folder.path / "agent", *_draw(agent, folder.path, f"{asked.algo} on {env_id}")]
    if stopped:
        kept = f"the agent of {agent.num_episodes} episodes is kept in {folder.path / 'agent'}"
        raise KeyboardInterrupt(f"{kept}, {go_on}")
    summary: dict[str, float] = {}
    rows = []
    if asked.eval_episodes:
        measured = run_episodes(agent, env, asked.eval_episodes, seed=asked.seed)
        summary = summarise(measured)
        rows.append({"timesteps": agent.num_timesteps, **summary})
        written.append(_write_evaluations(folder.path, asked.algo, agent, measured))
    env.close()
    totals = {"num_episodes": agent.num_episodes, "num_timesteps": agent.num_timesteps}
    summary = {**summary, **totals}
    written.append(folder.write_results(rows, summary, device_of(agent)))
    remove_checkpoints(folder.path)  # kept for `--resume` alone
    title = f"{asked.algo} on {env_id}, {asked.eval_episodes} episodes after learning"
    out.table(title, ["", "value [95 % interval]"], summary_rows(summary))
    out.wrote(*written)


def _make_rollouts(
    agent: Any, asked: TrainOptions, drawing: RolloutOptions
) -> contextlib.AbstractContextManager[Any]:
    """Return what draws the agent's episodes until the end of its block.

    Raises:
        UsageError: If that is not possible.
    """
    from awsgd_rl.agents.distributed import RolloutWorkers

    if asked.rollout_workers is None:
        if drawing.engine != "local" or drawing.address is not None:
            raise UsageError("--engine and --address are for --rollout-workers: give that too")
        return contextlib.nullcontext()
    try:
        return RolloutWorkers(
            agent,
            asked.rollout_workers,
            lag=asked.rollout_lag,
            engine=drawing.engine,
            address=drawing.address,
        )
    except ImportError as error:
        raise UsageError(str(error)) from None


def _chosen_algorithm(argv: Sequence[str], stored: Mapping[str, Any]) -> str:
    """Return the algorithm that `argv` or the stored run names: the other options depend on it."""
    name = stored.get("algo", value_of(argv, "--algo") or TrainOptions.algo)
    return require_name("algorithm", name, ALGORITHMS)


def _config_class(algorithm: str) -> Any:
    config_class = ALGORITHMS[algorithm].config_class
    if config_class is None:
        configs = import_module("awsgd_rl.agents.stable_baselines_configs").CONFIGS
        config_class = configs[algorithm]
    return config_class


def _check_numbers(asked: TrainOptions) -> None:
    require_integer("--seed", asked.seed, minimum=0)
    require_integer("--eval-episodes", asked.eval_episodes, minimum=0)
    totals = {"timesteps": asked.total_timesteps, "episodes": asked.total_episodes}
    for name, value in totals.items():
        if value is not None:
            require_integer(f"--total-{name}", value)
    if None not in totals.values():
        raise UsageError("--total-timesteps and --total-episodes are both given, expected one")


def _choose_policy(asked: TrainOptions, env: Any) -> str:
    from gymnasium import spaces

    if asked.policy is not None:
        return require_name("policy", asked.policy, POLICIES)
    ours = ALGORITHMS[asked.algo].config_name is not None
    discrete = isinstance(env.observation_space, spaces.Discrete)
    return "TablePolicy" if ours and discrete else "MlpPolicy"


def _choose_total(asked: TrainOptions, policy: str) -> dict[str, int]:
    if asked.total_timesteps is not None:
        return {"total_timesteps": asked.total_timesteps}
    if asked.total_episodes is not None:
        return {"total_episodes": asked.total_episodes}
    if policy == "TablePolicy":
        return {"total_episodes": 20_000}
    return {"total_timesteps": 100_000}


def _spelled(settings: dict[str, Any]) -> dict[str, Any]:
    # JSON has no infinity, and an option may be infinite (no clipping).
    return {name: "inf" if value == math.inf else value for name, value in settings.items()}


def _recorder(agent: Any, path: Path, total: dict[str, int]) -> SnapshotRecorder:
    """Return what records the policies for the report, from where the agent stands."""
    ((name, count),) = total.items()
    recorder = SnapshotRecorder(path, agent, total=count, unit=name.removeprefix("total_"))
    recorder.drop_after(agent.num_episodes)
    return recorder


def _learn(
    agent: Any, total: dict[str, int], out: Output, checkpoints: Any, recorder: SnapshotRecorder
) -> bool:
    """Learn what is left of the total, showing how far it is; return whether Ctrl-C stopped it."""
    from awsgd_rl.benchmarks.workers import one_thread

    ((name, count),) = total.items()
    unit = name.removeprefix("total_")
    left = count - (agent.num_episodes if unit == "episodes" else agent.num_timesteps)
    if left <= 0:
        return False
    with out.progress("train", count, unit) as update, _stop_on_interrupt() as stopped:

        def after_batch(agent: Any) -> bool:
            recorder.record(agent)
            history = agent.history
            for quantity in ("success", "return"):
                recent = [value for value in history[quantity][-20:] if np.isfinite(value)]
                if recent:
                    done = min(history[unit][-1], count)  # the last batch may be past it
                    update(done, f"{quantity} {np.mean(recent):.3f}")
                    break
            if history[unit][-1] < count:
                checkpoints(agent)
            return not stopped.is_set()

        # Small tensors on several threads crawl, and a run should not depend on the cores.
        with one_thread():
            agent.learn(**{name: left}, callback=after_batch)
    if stopped.is_set():
        checkpoints.try_write(agent)
    return stopped.is_set()


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Let the first Ctrl-C end the batch that is under way; the second one ends at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _draw(agent: Any, folder: Path, title: str) -> list[Path]:
    """Draw the learning curve: success where it is known, else return."""
    from awsgd_rl.benchmarks.trial import binned
    from awsgd_rl.plots import learning_curves, save_figure
    from awsgd_rl.statistics import Band

    history = agent.history
    known = [name for name in ("success", "return") if np.isfinite(history.get(name, [])).any()]
    if not known or len(history["episodes"]) < 2:  # one point is no curve
        return []
    total = int(history["episodes"][-1])
    points = min(_CURVE_POINTS, len(history["episodes"]))
    curve = binned(history["episodes"], history[known[0]], total, points)
    unknown = np.full(points, np.nan)
    figure = learning_curves(
        total * np.arange(1, points + 1) / points,
        {known[0]: Band(curve, unknown, unknown)},
        title=f"{known[0].capitalize()} while it learns",
        subtitle=title,
        ylabel="success probability" if known[0] == "success" else "return of an episode",
        percent=known[0] == "success",
    )
    return save_figure(figure, folder, "learning")


def _write_evaluations(folder: Path, algorithm: str, agent: Any, measured: Episodes) -> Path:
    """Add the evaluation to the logs that the agent wrote while it learned."""
    from awsgd_rl.agents.logging import RunLogger

    # From there, since a run that was stopped here may have added it already.
    position = agent.log_position()
    with RunLogger(
        folder, folder / "tensorboard", run_name=algorithm, append=True, resume=position
    ) as log:
        log.evaluation(
            agent.num_timesteps,
            measured.returns.tolist(),
            measured.lengths.tolist(),
            measured.successes.tolist(),
        )
    return folder / "evaluations.npz"
