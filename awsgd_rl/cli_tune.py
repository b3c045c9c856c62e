"""`awsgd-rl tune`: step sizes and the like, on seeds that are not reported."""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from typing import Any, Final

from awsgd_rl.agents.search_spaces import SPACES, describe
from awsgd_rl.benchmarks.search import Subject, TuneConfig, Tuned, make_subject
from awsgd_rl.cli_common import RunOptions, UsageError, parse, run_folder
from awsgd_rl.cli_engine import TRIALS, EngineOptions, ResumeOptions, going_on, stored_config
from awsgd_rl.cli_output import Output, format_interval, format_number
from awsgd_rl.runs import RESULTS_FILE, RunFolder, describe_cpu

STUDY_FILE: Final = "study.db"

DESCRIPTION = f"""Find good settings of algorithms: the same number of trials for each.

Optuna suggests settings (TPE; the default is the first trial), each learns on the same maps, and
those that fall behind the median of earlier ones are pruned. The maps are none of those that
compare reports on. The best of many trials looks better than it is on the maps that it was chosen
on: it is measured again, beside the default, on maps that nothing was chosen on.

what is searched (×÷8: from the default / 8 to the default × 8, on a log scale; options that mean
nothing on the task are left out):
{chr(10).join(f"  {label:<16} {describe(label)}" for label in SPACES)}

what is written:
  results.json, best.json (settings, and the commands that use them), figures;
  study.db, an SQLite file of Optuna's, which its own tools read too.

What has been measured is kept, and of trials under way a checkpoint, written every minute and at
Ctrl-C (on Ray: every minute): --resume goes on from there, and ends with the same numbers.

examples:
  awsgd-rl tune                                     about ten minutes on two cores
  awsgd-rl tune --preset 50/25 --algos awsgd reinforce --trials 40
  awsgd-rl tune --env CartPole-v1 --algos awsgd ppo --steps 30000
  awsgd-rl tune --algos awsgd --space '{{"awsgd": {{"updates": {{"choices": [8, 16, 32]}}}}}}'
  awsgd-rl tune --out runs/tuned --resume           go on after Ctrl-C, or anything worse
"""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    config: TuneConfig
    engine: EngineOptions
    asked: ResumeOptions
    options: RunOptions
    config, engine, asked, options = parse(
        "tune", argv, DESCRIPTION, TuneConfig, EngineOptions, ResumeOptions, RunOptions
    )
    out = Output(quiet=options.quiet)
    with contextlib.ExitStack() as running:
        with run_folder(options, "tune", resume=asked.resume) as start:
            study = start.path / STUDY_FILE
            if asked.resume:
                config = stored_config("tune", start.path, config)
                if (start.path / RESULTS_FILE).exists():
                    out.line(f"{start.path} is finished: nothing is left to do")
                    return
            elif study.exists() and not options.overwrite:
                raise UsageError(f"{str(study)!r} is there: choose another folder with --out")
            subjects = [make_subject(config, label) for label in config.algos]
            if asked.resume:
                from awsgd_rl.benchmarks.search_study import check_study

                check_study(config, subjects, study)
            running.enter_context(engine.execution(config.jobs, start.path / TRIALS))
            folder = start(dataclasses.asdict(config))
        # What is kept is found by its task: it must not depend on the number of processes.
        tuned = _tune(dataclasses.replace(config, jobs=None), subjects, folder, out)
    _finish(config, tuned, folder, out)


def _tune(
    config: TuneConfig, subjects: Sequence[Subject], folder: RunFolder, out: Output
) -> list[Tuned]:
    from awsgd_rl.benchmarks.search_study import tune

    total, done = len(config.algos) * config.trials, 0.0
    out.line(f"tune: {' '.join(config.algos)} on {config.task}")
    with (
        going_on("tune", folder.path, lambda: int(done), "trial"),
        out.progress("tune", total, "trials") as update,
    ):

        def show(count: float, text: str) -> None:
            nonlocal done
            done = count
            update(count, text)

        return tune(config, subjects, folder.path / STUDY_FILE, progress=show)


def _finish(config: TuneConfig, tuned: Sequence[Tuned], folder: RunFolder, out: Output) -> None:
    from awsgd_rl.benchmarks.search_figures import write_figures
    from awsgd_rl.benchmarks.search_results import best_of, rows_of, summary_of

    summary, best = summary_of(tuned), best_of(config, tuned)
    figures = write_figures(config, tuned, folder.path)
    written = [folder.write_json("best.json", best)]
    # Last: a folder with results is finished.
    written.append(folder.write_results(rows_of(tuned), summary, describe_cpu()))
    shutil.rmtree(folder.path / TRIALS, ignore_errors=True)  # kept for `--resume` alone
    _print(out, config, tuned, summary, best)
    out.wrote(*written, folder.path / STUDY_FILE, *figures)


def _print(
    out: Output,
    config: TuneConfig,
    tuned: Sequence[Tuned],
    summary: dict[str, float],
    best: dict[str, Any],
) -> None:
    metric = f"{tuned[0].metric}_mean"
    for own in tuned:
        label = own.subject.label
        out.table(
            f"{label}: trial {own.best.number} of {len(own.trials)} "
            f"({summary[f'{label}.pruned']} pruned, {summary[f'{label}.failed']} failed)",
            ["option", "best", "default", "share of the variance"],
            [
                [
                    name,
                    _spelled(value),
                    _spelled(own.subject.defaults[name]),
                    format_number(own.importances.get(name)),
                ]
                for name, value in own.best.options.items()
            ],
        )
    unit = f"{config.unit}s"
    chosen = f"{unit} {config.seeds.start} to {config.seeds[-1]}"
    columns = ["", f"best, {chosen}", f"default, {chosen}"]
    names = [f"best_{metric}", f"default_{metric}"]
    if config.check_maps:
        fresh = f"{unit} {config.check_seeds.start} to {config.check_seeds[-1]}"
        columns += [f"best, {fresh}", f"default, {fresh}", "gain there"]
        names += [f"check_best_{metric}", f"check_default_{metric}", "check_gain"]
    rows = [
        [label, *(format_interval(summary, f"{label}.{name}") for name in names)]
        for label in config.algos
    ]
    out.table(f"{tuned[0].metric} on {config.task}, {config.length}, 95 % intervals", columns, rows)
    out.line(
        f"The best was chosen on {chosen}, where it looks better than it is: "
        + (f"believe the numbers of {fresh}." if config.check_maps else "measure it on others.")
    )
    for label, found in best.items():
        out.line(f"{label}: {found['train']}")


def _spelled(value: Any) -> str:
    return format_number(value) if isinstance(value, float | int) else str(value)
