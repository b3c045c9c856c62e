"""`awsgd-rl evaluate`: return, length and success of a saved agent; with --rare, rare outcomes."""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from tyro.conf import Positional, arg

from awsgd_rl.cli_common import RunOptions, UsageError, parse, run_folder
from awsgd_rl.cli_environment import (
    choose_device,
    device_of,
    make_env,
    run_episodes,
    summarise,
)
from awsgd_rl.cli_output import Output, summary_rows
from awsgd_rl.validation import require_integer

_MOST_FRAMES: Final = 1000

DESCRIPTION = """Run episodes of a saved agent: mean return, length and success with 95 % intervals.

With --rare: how often does it fail? Episodes of an exploration policy that learns to make the agent
fail, weighted back: rare failures in far fewer episodes than plain rollouts would need.
It is for agents of this package (awsgd, reinforce) with discrete actions, and evaluates their
stochastic policy. An agent that never fails gets a 95 % upper bound.

outcomes for --rare:
  failure  the episode has no success (the environment reports is_success)
  trap     the environment ended the episode, without success
  horizon  the episode was cut off at its longest length
  return   the mean undiscounted return

safety:
  Agents, those of Stable-Baselines3 included, are read as numbers and JSON:
  no file is unpickled, and no module imported that a folder names.

examples:
  awsgd-rl evaluate runs/train-20260101-120000
  awsgd-rl evaluate runs/train-20260101-120000 --episodes 10000 --seed 1
  awsgd-rl evaluate runs/train-20260101-120000 --render gif
  awsgd-rl evaluate runs/train-20260101-120000 --render mp4       needs MoviePy
  awsgd-rl evaluate runs/train-20260101-120000 --env mymodule:MyEnv-v0
  awsgd-rl evaluate runs/train-20260101-120000 --rare failure
  awsgd-rl evaluate runs/train-20260101-120000 --rare trap --relative-error 0.02
"""


@dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated."""

    directory: Annotated[Positional[Path], arg(metavar="DIR")]
    """Run folder of `train`, or the folder that an agent's `save` wrote."""
    episodes: int | None = None
    """Number of episodes. Default: 100; with --render human: 3. With --rare: the most that are run,
    200 or more; default: 100,000."""
    rare: str | None = None
    """Outcome whose probability (return: mean) is estimated by learned exploration: failure, trap,
    horizon or return."""
    relative_error: float | None = None
    """With --rare: standard error, as a share of the estimate, at which to stop; above 0. Default:
    0.1."""
    render: Literal["human", "gif", "mp4"] | None = None
    """human: show the episodes in a window. gif, mp4: write the first one (of a long one its first
    1,000 frames) to episode.gif or episode.mp4; mp4 needs pip install 'awsgd-rl[video]'."""
    env: str | None = None
    """The environment, as MODULE:ID if a module of yours registers it; it gets the arguments that
    the agent learned with. Default: the one that the folder names."""
    deterministic: bool = False
    """Take the most probable actions, rather than draw them from the policy."""
    seed: int = 0
    """Seed of the environment and the policy's draws, 0 or more."""
    device: str = "auto"
    """auto, cpu or cuda."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    asked: EvaluateOptions
    options: RunOptions
    asked, options = parse("evaluate", argv, DESCRIPTION, EvaluateOptions, RunOptions)
    if asked.rare is not None:
        from awsgd_rl import cli_rare

        cli_rare.run(asked, options)
        return
    if asked.relative_error is not None:
        raise UsageError("--relative-error is for --rare: give the outcome, such as --rare failure")
    episodes = (3 if asked.render == "human" else 100) if asked.episodes is None else asked.episodes
    out = Output(quiet=options.quiet)
    filmed = asked.render in ("gif", "mp4")
    if filmed:
        # Without this, pygame looks for a screen that it does not need, and complains.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with run_folder(options, "evaluate") as start:
        require_integer("--episodes", episodes)
        require_integer("--seed", asked.seed, minimum=0)
        path = agent_folder(asked.directory, start.path)
        if asked.render == "mp4":
            _require_moviepy()
        env = env_of(path, "rgb_array" if filmed else asked.render, asked.env)
        agent = load(path, env, asked)
        folder = start(
            {
                "directory": str(asked.directory),
                "env": asked.env,
                "episodes": episodes,
                "deterministic": asked.deterministic,
                "seed": asked.seed,
                "device": asked.device,
            }
        )
    out.line(f"evaluate: {asked.directory}")
    frames: list[Any] = []
    episode = 0

    def keep_frame() -> None:
        if filmed and episode == 0 and len(frames) < _MOST_FRAMES:
            frames.append(env.render())

    with out.progress("evaluate", episodes, "episodes") as update:

        def count(done: int) -> None:
            nonlocal episode
            episode = done
            update(done, "")

        measured = run_episodes(
            agent,
            env,
            episodes,
            seed=asked.seed,
            deterministic=asked.deterministic,
            on_step=keep_frame,
            on_episode=count,
        )
    env.close()
    summary = summarise(measured)
    columns = zip(measured.returns, measured.lengths, measured.successes, strict=True)
    rows = [
        {"episode": number, "return": total, "length": length, "success": success}
        for number, (total, length, success) in enumerate(columns)
    ]
    written = [folder.write_results(rows, summary, device_of(agent))]
    if frames:
        fps = env.metadata.get("render_fps", 12)
        write = _write_gif if asked.render == "gif" else _write_mp4
        written.append(write(folder.path / f"episode.{asked.render}", frames, fps))
    title = f"{asked.directory}, {episodes} episodes"
    out.table(title, ["", "value [95 % interval]"], summary_rows(summary))
    out.wrote(*written)


def agent_folder(directory: Path, out: Path) -> Path:
    """Return where the agent of a run folder is saved.

    Raises:
        UsageError: If there is none, or it lies in `out`, which is to be written.
    """
    for path in (directory / "agent", directory):
        if (path / "agent.json").is_file():
            if path.resolve().is_relative_to(out.resolve()):
                raise UsageError(
                    f"--out {str(out)!r} holds the agent itself: choose another folder"
                )
            return path
    if not directory.exists():
        raise UsageError(f"there is no folder {str(directory)!r}")
    raise UsageError(
        f"{str(directory)!r} holds no saved agent: expected agent/agent.json or agent.json in it"
    )


def env_of(path: Path, render_mode: str | None, asked: str | None) -> Any:
    """Make the environment that was asked for, or that a saved agent names.

    Raises:
        UsageError: If it cannot be made, or has no such rendering.
    """
    import gymnasium as gym

    try:
        spec = json.loads((path / "agent.json").read_text(encoding="utf-8"))["env"]
        env_id, kwargs = spec["id"], {**spec.get("kwargs", {})}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{str(path / 'agent.json')!r} is damaged, or names no environment") from (
            None
        )
    kwargs.pop("render_mode", None)
    if asked is not None:
        env_id = asked
    elif ":" in env_id or env_id not in gym.registry:
        # "module:id" would import a module that the file names.
        raise UsageError(
            f"the agent learned on {env_id}, which is not registered: pass the module that "
            f"registers it, --env MODULE:{env_id.rpartition(':')[2]}"
        )
    env = make_env(env_id, kwargs)
    modes = env.metadata.get("render_modes", [])
    if render_mode is None:
        return env
    env.close()
    if render_mode not in modes:
        raise UsageError(f"{env_id} has no {render_mode} rendering, it has {', '.join(modes) or 0}")
    return make_env(env_id, kwargs, render_mode)


def load(path: Path, env: Any, asked: EvaluateOptions) -> Any:
    """Load the agent saved at `path`."""
    from awsgd_rl.agents import load_agent

    return load_agent(path, env=env, device=choose_device(asked.device), seed=asked.seed)


def _write_gif(path: Path, frames: Sequence[Any], fps: float) -> Path:
    from PIL import Image

    from awsgd_rl.runs import atomic_path

    first, *others = [Image.fromarray(np.asarray(frame, dtype=np.uint8)) for frame in frames]
    with atomic_path(path) as partial:
        # Viewers take less than 20 ms for 100 ms.
        duration = max(20, round(1000 / fps))
        first.save(partial, save_all=True, append_images=others, duration=duration, loop=0)
    return path


def _require_moviepy() -> None:
    if importlib.util.find_spec("moviepy") is None:
        raise UsageError(
            "--render mp4 needs MoviePy, which is not installed: pip install 'awsgd-rl[video]', or "
            "--render gif"
        )


def _write_mp4(path: Path, frames: Sequence[Any], fps: float) -> Path:
    """Write a film by Gymnasium's own recorder."""
    from gymnasium.utils.save_video import save_video

    from awsgd_rl.runs import atomic_path

    with tempfile.TemporaryDirectory() as folder:
        # It chooses the file's name, and warns of a folder that is there.
        save_video(
            [np.asarray(frame, dtype=np.uint8) for frame in frames],
            str(Path(folder) / "film"),
            episode_trigger=lambda episode: True,
            fps=fps,
        )
        (film,) = Path(folder).glob("film/*.mp4")
        with atomic_path(path) as partial:
            shutil.copyfile(film, partial)
    return path
