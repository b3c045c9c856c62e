"""`awsgd-rl compare`: agents side by side; with no arguments, the main job."""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence

from awsgd_rl.benchmarks.compare import (
    CompareConfig,
    Comparison,
    Progress,
    compare,
    write_figures,
)
from awsgd_rl.benchmarks.trial import Trial
from awsgd_rl.cli_common import RunOptions, parse, run_folder
from awsgd_rl.cli_engine import TRIALS, EngineOptions, ResumeOptions, going_on, stored_config
from awsgd_rl.cli_output import Output, format_interval, format_number
from awsgd_rl.runs import RESULTS_FILE, RunFolder, describe_cpu

DESCRIPTION = """Let agents learn side by side on the same maps, and compare their failures.

with no arguments:
  AW-SGD beside on-policy learning, with one update a batch (the paper's
  baseline) and with as many, on ten 15x15 maps with 9 traps, 20,000 episodes
  each: about a minute on two cores.

what is written:
  results.json, learning curves, failures, regret, the policies learned.

Each trial that is done is kept, and of those under way a checkpoint, written
every minute and at Ctrl-C (on Ray: every minute): so a run that was stopped,
however it was, goes on with --resume, and ends with the same numbers as one that
never was (on the CPU, bit for bit). Trials of Stable-Baselines3's algorithms that
were under way start again.

examples:
  awsgd-rl compare
  awsgd-rl compare --preset 50/25 --maps 12 --algos awsgd reinforce
  awsgd-rl compare --size 8 --traps 6 --slip 0.1 --episodes 5000 --regime paper
  awsgd-rl compare --env CartPole-v1 --maps 3 --episodes 500
  awsgd-rl compare --out runs/big --resume          go on after Ctrl-C, or anything worse
  awsgd-rl compare --maps 100 --engine ray --address auto      on a Ray cluster
"""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    config: CompareConfig
    engine: EngineOptions
    asked: ResumeOptions
    options: RunOptions
    config, engine, asked, options = parse(
        "compare", argv, DESCRIPTION, CompareConfig, EngineOptions, ResumeOptions, RunOptions
    )
    out = Output(quiet=options.quiet)
    with contextlib.ExitStack() as running:
        with run_folder(options, "compare", resume=asked.resume) as start:
            if asked.resume:
                config = stored_config("compare", start.path, config)
                if (start.path / RESULTS_FILE).exists():
                    out.line(f"{start.path} is finished: nothing is left to do")
                    return
            config.make_env(config.seed).close()
            running.enter_context(engine.execution(config.jobs, start.path / TRIALS))
            folder = start(dataclasses.asdict(config))
        comparison = _compare(config, folder, out)
    summary = comparison.summary()
    figures = write_figures(comparison, folder.path)
    # Last: a folder with results is finished.
    results = folder.write_results(comparison.rows, summary, describe_cpu())
    shutil.rmtree(folder.path / TRIALS, ignore_errors=True)  # kept for `--resume` alone
    _print(out, comparison, summary)
    out.wrote(results, *figures)


def _compare(config: CompareConfig, folder: RunFolder, out: Output) -> Comparison:
    total = len(config.algos) * config.maps * config.budget
    unit = "episodes" if config.steps is None else "steps"
    kept: list[Trial] = []
    out.line(f"compare: {' '.join(config.algos)} on {config.task}")
    with (
        going_on("compare", folder.path, lambda: len(kept), "trial"),
        out.progress("compare", total, unit) as update,
    ):

        def show(progress: Progress) -> None:
            update(progress.done, f"{progress.task}: {progress.recent:.3f}")

        return compare(config, progress=show, on_trial=kept.append)


def _print(out: Output, comparison: Comparison, summary: dict[str, float]) -> None:
    config, metric = comparison.config, comparison.metric
    rows = [
        [
            algorithm,
            format_interval(summary, f"{algorithm}.{metric}_mean"),
            format_interval(summary, f"{algorithm}.{metric}_final"),
            format_number(summary[f"{algorithm}.steps_mean"] / 1e6),
        ]
        for algorithm in config.algos
    ]
    count = f"{config.maps} {config.unit}{'s' if config.maps > 1 else ''}"
    out.table(
        f"{config.task}: {count}, {config.length}, 95 % intervals",
        ["", f"{metric}, all episodes", f"{metric}, at the end", "steps / 10⁶"],
        rows,
    )
    for name, text in (
        ("failure_ratio", "failures of reinforce / failures of awsgd"),
        ("failure_ratio_equal_updates", "failures of reinforce-equal / failures of awsgd"),
        ("failure_ratio_uniform_replay", "failures of uniform-replay / failures of awsgd"),
    ):
        if name in summary:
            out.line(f"{text}: {format_interval(summary, name)}")
