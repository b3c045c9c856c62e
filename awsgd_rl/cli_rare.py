"""`awsgd-rl evaluate --rare`: the probability of a rare outcome, by learned exploration."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.cli_common import RunOptions, UsageError, run_folder
from awsgd_rl.cli_evaluate import EvaluateOptions, agent_folder, env_of, load
from awsgd_rl.cli_output import Output, format_number, summary_rows
from awsgd_rl.runs import RunFolder, describe_cpu

if TYPE_CHECKING:
    from awsgd_rl.agents.evaluation import OutcomeEstimate
    from awsgd_rl.agents.outcome_rollouts import Path as Trajectory

_MOST_ACTIONS: Final = 40  # of a path, in the table
_RELATIVE_ERROR: Final = 0.1
_EPISODES: Final = 100_000


def run(asked: EvaluateOptions, options: RunOptions) -> None:
    """Run `evaluate DIR --rare OUTCOME`."""
    from awsgd_rl.agents.evaluation import check_arguments, estimate_outcome

    for name in ("render", "deterministic"):
        if getattr(asked, name):
            raise UsageError(
                f"--{name} and --rare are both given: --rare evaluates the stochastic policy, "
                "without pictures of its episodes"
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
        path = agent_folder(asked.directory)
        env = env_of(path, None)
        agent = load(path, env, asked)
        check_arguments(agent, **settings)
        folder = start(
            {
                "directory": str(asked.directory),
                "rare": asked.rare,
                "device": asked.device,
                **{name: value for name, value in settings.items() if name != "outcome"},
            }
        )
    out.line(f"evaluate: {asked.rare} of {asked.directory}")
    with out.progress("evaluate", episodes, "episodes") as update:
        found = estimate_outcome(agent, progress=update, **settings)
    rows = [_row(number, path) for number, path in enumerate(found.paths, start=1)]
    written = [folder.write_results(rows, summarise(found), describe_cpu())]
    written += _draw(found, env, folder, str(asked.directory))
    env.close()
    _print(out, found, str(asked.directory))
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


def _print(out: Output, found: "OutcomeEstimate", directory: str) -> None:
    summary = summarise(found)
    names = {
        found.outcome: "95 % bound, none was met" if found.bound_only else found.outcome,
        f"{found.outcome}_se": "standard error",
        "ess": "effective sample size",
        "episodes": "episodes, learning included",
        "learning_episodes": "of them, for learning",
        "naive_episodes": "plain episodes for this error",
        "variance_ratio": "variance, plain / ours",
        "largest_weight": "largest weight",
    }
    rows = [(names[name], text) for name, text in summary_rows(summary) if name in names]
    out.table(f"{directory}: {found.outcome}", ["", "value [95 % interval]"], rows)
    if found.bound_only:
        out.line(
            f"No episode of {found.episodes:,} had another outcome than {found.typical:g}: the "
            "interval is the 95 % bound that the plain episodes among them allow, no estimate."
        )
    if found.paths:
        out.table(
            "the likeliest episodes with this outcome"
            if found.outcome != "return"
            else "the likeliest episodes off the typical return",
            ["probability", "outcome", "steps", "actions"],
            [
                [
                    format_number(float(np.exp(path.log_probability))),
                    format_number(path.outcome),
                    str(len(path.actions)),
                    _short(path.actions),
                ]
                for path in found.paths
            ],
        )


def _short(actions: NDArray[np.int64]) -> str:
    text = " ".join(map(str, actions[-_MOST_ACTIONS:]))
    return f"… {text}" if len(actions) > _MOST_ACTIONS else text


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
    slips = f"; moves slip with probability {grid.slip:g}" if grid.slip else ""
    figure = plots_maps.trajectory_maps(
        panels,
        columns=grid.columns,
        states=grid.n_states,
        start=grid.start,
        goals=grid.goal_cells,
        traps=grid.trap_cells,
        title=f"The likeliest episodes: {found.outcome} {format_number(found.estimate)} {interval}",
        subtitle="over each: the probability of all its actions; orange: of single ones that are "
        f"below 10%{slips}",
    )
    return plots.save_figure(figure, folder.path, "failures")


def _cells(observations: NDArray[Any], grid: Any) -> NDArray[np.int64]:
    if observations.ndim == 1:
        return observations.astype(np.int64)
    if grid.observation == "one_hot":
        return np.asarray(observations.argmax(1), dtype=np.int64)
    row, column = observations.T.astype(np.int64)
    return np.asarray(row * grid.columns + column)
