"""What `awsgd-rl tune` found: rows, summary, the settings, and the commands that use them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from awsgd_rl.benchmarks.search import Subject, TuneConfig, Tuned, make_tuned_agent
from awsgd_rl.benchmarks.summary import add_interval
from awsgd_rl.statistics import Interval, mean_interval


def rows_of(tuned: Sequence[Tuned]) -> list[dict[str, Any]]:
    """Return one row a trial, algorithm by algorithm, for `results.json`.

    `<metric>_mean` is over the maps that the trial was measured on, of which a pruned one has
    fewer: it is then not comparable with that of the others.
    """
    rows = []
    for own in tuned:
        for trial in own.trials:
            row: dict[str, Any] = {
                "algorithm": own.subject.label,
                "trial": trial.number,
                "state": trial.state,
                "maps": len(trial.values),
            }
            if len(trial.values):
                mean = _interval(own.metric, trial.values)
                add_interval(row, f"{own.metric}_mean", mean)
            row |= {**trial.options, "seconds": round(trial.seconds, 3)}
            rows.append(row | ({"error": trial.error} if trial.error else {}))
    return rows


def summary_of(tuned: Sequence[Tuned]) -> dict[str, float]:
    """Return the numbers of `results.json`, with the ends of 95 % intervals over maps.

    `<algo>.best_success_mean` (`return` where success is not known) of the setting chosen and
    `.default_success_mean`, on the maps that it was chosen on; `.check_best_success_mean`,
    `.check_default_success_mean` and `.check_gain`, their difference map by map, on others;
    `.trials`, `.pruned`, `.failed`; `.importance_<option>` if enough was tried.
    """
    summary: dict[str, float] = {}
    for own in tuned:
        label, name = own.subject.label, f"{own.metric}_mean"
        for kind, trial in (("best", own.best), ("default", own.trials[0])):
            add_interval(summary, f"{label}.{kind}_{name}", _interval(own.metric, trial.values))
        ours, theirs = own.check[own.best.number], own.check[0]
        for kind, values in (("best", ours), ("default", theirs)):
            if len(values):
                add_interval(summary, f"{label}.check_{kind}_{name}", _interval(own.metric, values))
        if len(ours) and len(theirs):
            add_interval(summary, f"{label}.check_gain", mean_interval(ours - theirs))
        summary[f"{label}.trials"] = len(own.trials)
        for state in ("pruned", "failed"):
            summary[f"{label}.{state}"] = sum(trial.state == state for trial in own.trials)
        for option, share in own.importances.items():
            summary[f"{label}.importance_{option}"] = share
    return summary


def best_of(config: TuneConfig, tuned: Sequence[Tuned]) -> dict[str, Any]:
    """Return what `best.json` holds: each algorithm's settings, and the command to train with."""
    return {
        own.subject.label: {
            "trial": own.best.number,
            "settings": own.best.options,
            "default": own.subject.default_options,
            f"{own.metric}_mean": float(own.best.values.mean()),
            "train": train_command(config, own.subject, own.best.options),
        }
        for own in tuned
    }


def train_command(config: TuneConfig, subject: Subject, options: Mapping[str, Any]) -> str:
    """Return the command that trains an algorithm with these options on the task."""
    words = ["awsgd-rl", "train", "--algo", subject.algorithm]
    if config.env is not None:
        words += ["--env", config.env]
    elif config.preset is not None:
        words += ["--preset", config.preset]
    else:
        kwargs = {
            "size": 15 if config.size is None else config.size,
            "traps": config.traps,
            "slip": config.slip,
        }
        given = {name: value for name, value in kwargs.items() if value is not None}
        words += ["--env-kwargs", json.dumps(given)]
    unit = "episodes" if config.steps is None else "timesteps"
    words += [f"--total-{unit}", str(config.budget)]
    for name, value in _not_implied(config, subject, {**subject.defaults, **options}).items():
        words += _option(name, value)
    return shlex.join(words)


def _not_implied(
    config: TuneConfig, subject: Subject, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that have to be given for an agent to have all of them.

    What is not given depends on what is: without a critic, the default batch is larger.
    """
    env = config.make_env(config.seed)
    given: dict[str, Any] = {}
    while True:
        agent = make_tuned_agent(config, subject, given, env, config.seed)
        implied = asdict(agent.config)
        missing = {name: value for name, value in settings.items() if value != implied[name]}
        if not missing:
            env.close()
            return given
        given |= missing


def _option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]


def _interval(metric: str, values: ArrayLike) -> Interval:
    return mean_interval(values, bounds=(0.0, 1.0) if metric == "success" else (-np.inf, np.inf))
