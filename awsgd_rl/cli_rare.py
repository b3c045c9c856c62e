"""`awsgd-rl evaluate --rare`: the probability of a rare outcome, by learned exploration."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.cli_common import RunOptions, UsageError, run_folder
from awsgd_rl.cli_environment import device_of
from awsgd_rl.cli_evaluate import EvaluateOptions, agent_folder, env_of, load
from awsgd_rl.cli_output import Output, format_interval, format_number
from awsgd_rl.runs import RunFolder
from awsgd_rl.validation import require_integer

if TYPE_CHECKING:
    from awsgd_rl.agents.evaluation import OutcomeEstimate
    from awsgd_rl.agents.outcomes import Path as Trajectory

_MOST_ACTIONS: Final = 40  # of a path, in the table
_RELATIVE_ERROR: Final = 0.1
_EPISODES: Final = 100_000
_MOVES: Final = ("left", "down", "right", "up")  # of the gridworld
_NAMES: Final = {
    "failure": "probability of failure",
    "trap": "probability of ending in a trap",
    "horizon": "probability of being cut off at the horizon",
    "return": "mean return",
}
_EPISODES_OF: Final = {"failure": "failures", "trap": "ends in a trap", "horizon": "cut-offs"}


def run(asked: EvaluateOptions, options: RunOptions) -> None:
    """Run `evaluate DIR --rare OUTCOME`."""
    from awsgd_rl.agents.evaluation import check_arguments, estimate_outcome

    if asked.deterministic:
        raise UsageError(
            "--deterministic and --rare are both given: --rare evaluates the stochastic policy, "
            "the most probable actions alone leave nothing to explore; leave one of them out"
        )
    if asked.render is not None:
        raise UsageError(
            "--render and --rare are both given: the episodes of --rare cannot be shown, leave "
            "one of them out"
        )
    out = Output(quiet=options.quiet)
    episodes = _EPISODES if asked.episodes is None else asked.episodes
    error = _RELATIVE_ERROR if asked.relative_error is None else asked.relative_error
    settings: dict[str, Any] = {
        "outcome": asked.rare,
        "episodes": episodes,
        "relative_error": error,
        "seed": asked.seed,
    }
    with run_folder(options, "evaluate") as start:
        require_integer("--episodes", episodes)
        require_integer("--seed", asked.seed, minimum=0)
        path = agent_folder(asked.directory, start.path)
        env = env_of(path, None, asked.env)
        agent = load(path, env, asked)
        check_arguments(agent, **settings)
        folder = start(
            {
                "directory": str(asked.directory),
                "env": asked.env,
                "rare": asked.rare,
                "device": asked.device,
                **{name: value for name, value in settings.items() if name != "outcome"},
            }
        )
    out.line(f"evaluate: {asked.rare} of {asked.directory}")
    with out.progress("evaluate", episodes, "episodes") as update:
        found = estimate_outcome(agent, progress=update, **settings)
    rows = [_row(number, path) for number, path in enumerate(found.paths, start=1)]
    written = [folder.write_results(rows, summarise(found), device_of(agent))]
    written += _draw(found, env, folder, str(asked.directory))
    env.close()
    _print(out, found, str(asked.directory), _action_names(env), error)
    out.wrote(*written)


def summarise(found: "OutcomeEstimate") -> dict[str, float]:
    """Return the numbers of `results.json`."""
    name = found.outcome
    return {
        name: found.estimate,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
        f"{name}_se": found.standard_error,
        "bound_only": float(found.bound_only),
        "deterministic": float(found.deterministic),
        "ess": found.ess,
        "episodes": found.episodes,
        "learning_episodes": found.learning_episodes,
        "naive_episodes": found.naive_episodes,
        "variance_ratio": found.variance_ratio,
        "largest_weight": found.largest_weight,
    }


def _row(number: int, path: "Trajectory") -> dict[str, Any]:
    return {
        "path": number,
        "probability": float(np.exp(path.log_probability)),
        "log_probability": path.log_probability,
        "outcome": path.outcome,
        "length": len(path.actions),
        "actions": path.actions.tolist(),
    }


def _print(
    out: Output, found: "OutcomeEstimate", directory: str, names: Sequence[str], asked: float
) -> None:
    title = f"{directory}: {_NAMES[found.outcome]}"
    if found.bound_only:
        rows = [_bound(found)]
    else:
        rows = [
            (_NAMES[found.outcome], format_interval(summarise(found), found.outcome)),
            ("standard error", _number(found.standard_error)),
            ("effective sample size", format_number(found.ess)),
        ]
    rows += [
        ("episodes, learning included", f"{found.episodes:,}"),
        ("of them, for learning", f"{found.learning_episodes:,}"),
    ]
    if not found.bound_only:
        rows += [
            ("plain episodes for this error", _number(found.naive_episodes)),
            ("variance, plain / ours", _number(found.variance_ratio)),
            ("largest weight", format_number(found.largest_weight)),
        ]
    out.table(title, ["", "value" if found.bound_only else "value [95 % interval]"], rows)
    for line in _remarks(found, asked):
        out.line(line)
    if found.paths:
        out.table(
            f"{_heading(found)} (probability of all actions)",
            ["probability", "outcome", "steps", "actions"],
            [
                [
                    format_number(float(np.exp(path.log_probability))),
                    format_number(path.outcome),
                    str(len(path.actions)),
                    _short(path.actions, names),
                ]
                for path in found.paths
            ],
        )


def _number(value: float) -> str:
    """Return the number with three digits: its own error leaves no more."""
    return format_number(float(f"{value:.3g}"))


def _bound(found: "OutcomeEstimate") -> tuple[str, str]:
    name = _NAMES[found.outcome]
    if found.outcome == "return":
        return f"{name}, no interval", format_number(found.typical)
    if found.typical == 0.0:
        return f"{name}, at most", format_number(found.high)
    return f"{name}, at least", format_number(found.low)


def _remarks(found: "OutcomeEstimate", asked: float) -> list[str]:
    """Return what the table does not say by itself."""
    remarks = []
    if found.deterministic:
        remarks.append(
            "The policy is deterministic: there was nothing to explore, the episodes are plain "
            "rollouts."
        )
    if found.bound_only:
        same = f"All {found.episodes:,} episodes had the same {found.outcome}"
        if found.outcome == "return":
            return [*remarks, f"{same}: there is no interval, as returns have no bounds."]
        if found.typical == 0.0:
            end = "the number is a 95 % upper bound"
            same = f"None of {found.episodes:,} episodes had the outcome"
        else:
            end = "the number is a 95 % lower bound"
            same = f"Each of {found.episodes:,} episodes had the outcome"
        return [*remarks, f"{same}: {end}, by the plain episodes among them, and no estimate."]
    reached = found.standard_error / abs(found.estimate) if found.estimate else np.inf
    if reached > asked:
        remarks.append(
            f"The episodes were too few for a standard error of {asked:.2g} of the estimate: it is "
            f"{reached:.2g}. Raise --episodes or --relative-error."
        )
    if found.naive_episodes < found.episodes and not found.deterministic:
        remarks.append(
            "Plain rollouts would have done as well here: exploration helps where the outcome is "
            "rare, and the actions decide it."
        )
    return remarks


def _heading(found: "OutcomeEstimate") -> str:
    if found.outcome == "return":
        return (
            "the episodes that move the mean most off the typical return "
            f"{format_number(found.typical)}"
        )
    if found.typical == 0.0:
        return f"the likeliest {_EPISODES_OF[found.outcome]} met"
    return "the likeliest episodes met without this outcome"


def _action_names(env: Any) -> tuple[str, ...]:
    """Return what actions are called; nothing where they are only numbers."""
    from awsgd_rl.envs import TrapGridworld

    return _MOVES if isinstance(env.unwrapped, TrapGridworld) else ()


def _short(actions: NDArray[np.int64], names: Sequence[str]) -> str:
    """Return the last actions, equal ones in a row counted: "down x7, right"."""
    last = actions[-_MOST_ACTIONS:]
    turns = np.flatnonzero(np.diff(last, prepend=-1))
    words = []
    for turn, length in zip(turns, np.diff(turns, append=len(last)), strict=True):
        name = names[last[turn]] if names else str(last[turn])
        words.append(name if length == 1 else f"{name} x{length}")
    return ("… " if len(actions) > len(last) else "") + ", ".join(words)


def _draw(found: "OutcomeEstimate", env: Any, folder: RunFolder, directory: str) -> list[Path]:
    """Draw the likeliest paths on the map, where there is one."""
    from awsgd_rl import plots, plots_maps
    from awsgd_rl.envs import TrapGridworld

    grid = env.unwrapped
    if not found.paths or not isinstance(grid, TrapGridworld):
        return []
    panels = [
        plots_maps.TrajectoryPanel(
            format_number(float(np.exp(path.log_probability))),
            _cells(path.observations, grid),
            path.probabilities,
        )
        for path in found.paths
    ]
    interval = f"[{format_number(found.low)}, {format_number(found.high)}]"
    legend = "over each: the probability of all its actions; orange: of single ones below 10%"
    if grid.slip:
        legend += f" (moves slip: {grid.slip:.0%})"
    figure = plots_maps.trajectory_maps(
        panels,
        columns=grid.columns,
        states=grid.n_states,
        start=grid.start,
        goals=grid.goal_cells,
        traps=grid.trap_cells,
        title=f"{_NAMES[found.outcome].capitalize()}: {format_number(found.estimate)} {interval}",
        subtitle=f"{_heading(found)}\n{legend}",
    )
    return plots.save_figure(figure, folder.path, "failures")


def _cells(observations: NDArray[Any], grid: Any) -> NDArray[np.int64]:
    if observations.ndim == 1:
        return observations.astype(np.int64)
    if grid.observation == "one_hot":
        return np.asarray(observations.argmax(1), dtype=np.int64)
    row, column = observations.T.astype(np.int64)
    return np.asarray(row * grid.columns + column)
