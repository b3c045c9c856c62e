"""`awsgd-rl bench NAME`: a figure or table of the README, made again."""

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from tyro.conf import Positional, arg

from awsgd_rl.cli_common import RunOptions, UsageError, bad_usage, parse, run_folder
from awsgd_rl.cli_output import Output, format_number, summary_rows
from awsgd_rl.runs import describe_cpu
from awsgd_rl.validation import require_name

_MOST_COLUMNS: Final = 8


@dataclass(frozen=True)
class Bench:
    """A bench: a module with `run(quick) -> (rows, summary)`."""

    module: str
    """Imported when the bench runs; `run` may take `seed` and `data` too, and `progress`, which it
    calls with the share that is done, in [0, 1], and what to say beside it."""
    description: str
    """One line."""


BENCHES: Final = {
    "env-speed": Bench(
        "awsgd_rl.benchmarks.env_speed",
        "steps a second of the engine and the vector environment beside other packages",
    ),
    "control": Bench(
        "awsgd_rl.benchmarks.control",
        "neural policies: both agents on CartPole-v1 and Pendulum-v1",
    ),
    "tuning": Bench(
        "awsgd_rl.benchmarks.tuning",
        "step sizes of the main comparison, on maps that it does not report",
    ),
}

DESCRIPTION = f"""Make a figure or table of the README again.

benches:
{chr(10).join(f"  {name:<12} {bench.description}" for name, bench in BENCHES.items())}

examples:
  awsgd-rl bench env-speed --quick       under a minute: the same code, fewer repeats
  awsgd-rl bench env-speed --out speed
"""


@dataclass(frozen=True)
class BenchOptions:
    """What to run."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Which bench; `awsgd-rl list` shows all."""
    quick: bool = False
    """Under a minute: the same code on fewer seeds."""
    data: Path | None = None
    """Folder of the data, for a bench that reads some."""
    seed: int | None = None
    """Seed of all randomness, for a bench that draws. Default: the bench's own."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    asked: BenchOptions
    options: RunOptions
    asked, options = parse("bench", argv, DESCRIPTION, BenchOptions, RunOptions)
    with bad_usage():
        require_name("bench", asked.name, BENCHES)
        module = importlib.import_module(BENCHES[asked.name].module)
        arguments = _arguments(asked, module.run)
    out = Output(quiet=options.quiet)
    with run_folder(options, "bench", f"bench {asked.name}") as start:
        folder = start({"quick": asked.quick, **arguments})
    with out.progress(asked.name, 100, "%") as update:
        if "progress" in inspect.signature(module.run).parameters:
            arguments["progress"] = lambda share, text: update(100 * share, text)
        rows, summary = module.run(quick=asked.quick, **arguments)
    written = folder.write_results(rows, summary, describe_cpu())
    _print_rows(out, asked.name, rows)
    out.table("summary", ["name", "value [95 % interval]"], summary_rows(summary))
    out.wrote(written)


def _arguments(asked: BenchOptions, run: Any) -> dict[str, Any]:
    """Return the options given that the bench takes.

    Raises:
        UsageError: If one is given that it does not take.
    """
    given = {
        name: value
        for name, value in (("data", asked.data), ("seed", asked.seed))
        if value is not None
    }
    for name in given:
        if name not in inspect.signature(run).parameters:
            raise UsageError(f"bench {asked.name} takes no --{name}: leave it out")
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
