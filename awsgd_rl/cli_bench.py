"""`awsgd-rl bench NAME`: a figure or table of the README, made again."""

import contextlib
import importlib
import inspect
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from tyro.conf import Positional, arg

from awsgd_rl.benchmarks.task_store import TaskStore
from awsgd_rl.cli_common import RunOptions, UsageError, bad_usage, parse, run_folder
from awsgd_rl.cli_engine import TRIALS, EngineOptions, going_on
from awsgd_rl.cli_output import Output, format_number, summary_rows
from awsgd_rl.runs import RESULTS_FILE, describe_cpu, read_config, to_json
from awsgd_rl.validation import require_integer, require_name

_MOST_COLUMNS: Final = 8


@dataclass(frozen=True)
class Bench:
    """A bench: a module with `run(quick) -> (rows, summary)`."""

    module: str
    """Imported when the bench runs; `run` may take any of `LIMITS` too, and `progress`, which it
    calls with the share that is done, in [0, 1], and what to say beside it. A `check`, if there is
    one, raises ValueError for values of those of `CHECKED` that it takes."""
    description: str
    """One line."""


BENCHES: Final = {
    "anatomy": Bench(
        "awsgd_rl.benchmarks.anatomy",
        "what the AW-SGD agent does while it learns: its variance, its draw, its bias",
    ),
    "env-speed": Bench(
        "awsgd_rl.benchmarks.env_speed",
        "steps a second of the engine and the vector environment beside other packages",
    ),
    "control": Bench(
        "awsgd_rl.benchmarks.control",
        "neural policies: AW-SGD, on-policy and PPO on CartPole-v1 and Acrobot-v1",
    ),
    "evaluation": Bench(
        "awsgd_rl.benchmarks.evaluation",
        "failure probabilities of trained agents: learned exploration beside plain episodes",
    ),
    "learning": Bench(
        "awsgd_rl.benchmarks.learning",
        "failures while learning: AW-SGD, uniform replay, on-policy, A2C and PPO on all presets",
    ),
    "tuning": Bench(
        "awsgd_rl.benchmarks.tuning",
        "step sizes of the main comparison, on maps that it does not report",
    ),
    "frozen-variance": Bench(
        "awsgd_rl.benchmarks.frozen_variance",
        "variance of a frozen policy's gradient: on-policy beside learned exploration",
    ),
    "integral": Bench(
        "awsgd_rl.benchmarks.integral",
        "the mean of a matrix with a heavy block: learned draws beside uniform ones",
    ),
    "class-bias": Bench(
        "awsgd_rl.benchmarks.class_bias",
        "imbalanced classes: class bias and richer proposals beside what people use",
    ),
    "matrix-factorisation": Bench(
        "awsgd_rl.benchmarks.matrix_factorisation",
        "rows and columns drawn as their errors ask for: synthetic matrices and MNIST zeros",
    ),
    "time-aware": Bench(
        "awsgd_rl.benchmarks.time_aware",
        "rows that are slow to read: the draw learned with its access time",
    ),
    "hashing": Bench(
        "awsgd_rl.benchmarks.hashing",
        "examples found by hash tables and near neighbours, heavy and light tails",
    ),
    "optimal-sampling": Bench(
        "awsgd_rl.benchmarks.optimal_sampling",
        "draws by gradient norms with SGD, momentum, RMSProp and Adam",
    ),
    "multiple-is": Bench(
        "awsgd_rl.benchmarks.multiple_is",
        "several proposals at once: balance heuristic and optimal weights on four tasks",
    ),
    "two-stage": Bench(
        "awsgd_rl.benchmarks.two_stage",
        "many candidates, few drawn: two-stage draws of a CNN's batches",
    ),
    "overhead": Bench(
        "awsgd_rl.benchmarks.overhead",
        "what learned draws add to an iteration, beside the same loop with uniform ones",
    ),
    "replay": Bench(
        "awsgd_rl.benchmarks.replay",
        "time and memory of prioritized replay, beside other libraries' and uniform replay",
    ),
    "replay-learning": Bench(
        "awsgd_rl.benchmarks.replay_learning",
        "DQN with and without prioritized replay: return over steps and time",
    ),
    "survive": Bench(
        "awsgd_rl.benchmarks.survive",
        "training killed at random moments and gone on with: does it end as if never stopped",
    ),
    "soak": Bench(
        "awsgd_rl.benchmarks.soak",
        "an hour of training: memory and speed, from beginning to end",
    ),
    "scaling": Bench(
        "awsgd_rl.benchmarks.scaling",
        "trials and rollouts on several workers: speed-up, bytes sent, where it saturates",
    ),
}

LIMITS: Final = ("data", "seed", "preset", "regime", "maps", "env", "seeds", "jobs")
"""Options that a bench's `run` may take, under these names."""

CHECKED: Final = ("preset", "regime", "env")
"""Those of which a bench has a choice."""

DESCRIPTION = f"""Make a figure or table of the README again.

benches:
{chr(10).join(f"  {name:<20} {bench.description}" for name, bench in BENCHES.items())}

examples:
  awsgd-rl bench env-speed --quick       under a minute: the same code, fewer repeats
  awsgd-rl bench env-speed --out speed
  awsgd-rl bench learning --preset 50/25 --regime strong --maps 4
  awsgd-rl bench learning --out learning --resume     go on after Ctrl-C, or anything worse
  awsgd-rl bench control --engine ray --address auto  on a Ray cluster

Trials that were finished are kept for --resume, and only the others are run. Those of learning and
control that were under way go on from a checkpoint, written every minute and at Ctrl-C (on Ray:
every minute). Benches that measure times of single operations (env-speed, overhead, replay) keep
nothing, and are run again as a whole.
"""


@dataclass(frozen=True)
class BenchOptions:
    """What to run."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Which bench; `awsgd-rl list` shows all."""
    quick: bool = False
    """Under a minute: the same code on fewer seeds."""
    data: Path | None = None
    """File or folder of the data, for a bench that reads some (an `mnist.npz`)."""
    seed: int | None = None
    """Seed of all randomness, for a bench that draws. Default: the bench's own."""
    preset: str | None = None
    """This preset alone, for a bench of several."""
    regime: str | None = None
    """This regime alone, strong or paper, for a bench of both."""
    maps: int | None = None
    """Number of maps, for a bench of many. Default: the bench's own."""
    env: str | None = None
    """This environment alone, for a bench of several."""
    seeds: int | None = None
    """Number of seeds, for a bench of many. Default: the bench's own."""
    jobs: int | None = None
    """Processes, for a bench that takes several. Default: one for each core."""
    resume: bool = False
    """Go on with the interrupted bench that --out holds, with its settings."""


_ANY_NUMBER: Final = ("jobs",)
"""Options that change no result: they may be others when a bench goes on."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    asked: BenchOptions
    engine: EngineOptions
    options: RunOptions
    asked, engine, options = parse(
        "bench", argv, DESCRIPTION, BenchOptions, EngineOptions, RunOptions
    )
    with bad_usage():
        require_name("bench", asked.name, BENCHES)
        module = importlib.import_module(BENCHES[asked.name].module)
        arguments = {"quick": asked.quick, **_arguments(asked, module)}
    out = Output(quiet=options.quiet)
    with contextlib.ExitStack() as running:
        name = f"bench {asked.name}"
        with run_folder(options, "bench", name, resume=asked.resume) as start:
            if asked.resume:
                arguments = _stored_arguments(start.path, name, arguments)
                if (start.path / RESULTS_FILE).exists():
                    out.line(f"{start.path} is finished: nothing is left to do")
                    return
            store = start.path / TRIALS
            running.enter_context(engine.execution(asked.jobs, store))
            folder = start(arguments)
        kept = TaskStore(store)
        with (
            going_on(name, folder.path, lambda: len(kept), "result"),
            out.progress(asked.name, 100, "%") as update,
        ):
            if "progress" in inspect.signature(module.run).parameters:
                arguments["progress"] = lambda share, text: update(100 * share, text)
            rows, summary = module.run(**arguments)
    figures: list[Path] = []
    if hasattr(module, "write_figures"):
        figures = module.write_figures(rows, summary, folder.path)
    # Last: a folder with results is finished.
    results = folder.write_results(rows, summary, describe_cpu())
    shutil.rmtree(store, ignore_errors=True)  # kept for `--resume` alone
    _print_rows(out, asked.name, rows)
    out.table("summary", ["name", "value [95 % interval]"], summary_rows(summary))
    out.wrote(results, *figures)


def _stored_arguments(path: Path, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an interrupted bench, with the number of processes asked for now.

    Raises:
        UsageError: If it is another bench, or options were given now that differ from its own.
    """
    run = read_config(path)
    if run["name"] != name:
        raise UsageError(f"{str(path)!r} holds a run of {run['name']!r}, expected {name!r}")
    stored = {key: value for key, value in run["config"].items() if key not in _ANY_NUMBER}
    for key, value in given.items():
        if key in _ANY_NUMBER or value is False:
            continue
        if to_json(value) != stored.get(key):
            then = f"has {stored[key]}" if key in stored else "has none"
            raise UsageError(f"--{key} is {value}, but the run to go on with {then}: leave it out")
    if stored.get("data") is not None:
        stored["data"] = Path(stored["data"])
    return {**stored, **{key: given[key] for key in _ANY_NUMBER if key in given}}


def _arguments(asked: BenchOptions, module: Any) -> dict[str, Any]:
    """Return the options given that the bench takes.

    Raises:
        UsageError: If one is given that it does not take.
        ValueError: If a count is below 1, a seed below 0, or the bench has no such choice.
    """
    given = {
        name: value
        for name, value in ((name, getattr(asked, name)) for name in LIMITS)
        if value is not None
    }
    for name in given:
        if name not in inspect.signature(module.run).parameters:
            raise UsageError(f"bench {asked.name} takes no --{name}: leave it out")
    for name in ("maps", "seeds", "jobs"):
        if name in given:
            require_integer(f"--{name}", given[name])
    if "seed" in given:
        require_integer("--seed", given["seed"], 0)
    if hasattr(module, "check"):
        module.check(**{name: given[name] for name in CHECKED if name in given})
    if asked.data is not None and not asked.data.exists():
        raise UsageError(f"--data is {str(asked.data)!r}, but there is no such file or folder")
    return given


def _print_rows(out: Output, title: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = [
        name
        for name, value in (rows[0].items() if rows else ())
        if isinstance(value, str | int | float)
    ][:_MOST_COLUMNS]
    if columns:
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        out.table(title, columns, cells)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else format_number(value)
