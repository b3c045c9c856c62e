"""The trials of `awsgd-rl tune`: an Optuna study for each algorithm, in one SQLite file.

    for each batch of trials:                        all algorithms side by side
        suggest its settings by TPE; the first of all is the default
        measure them on two maps, then map by map:
            drop those whose mean gain over the default is below the median of earlier trials

What is suggested depends on the trials that the file holds, the seed and the trial's number alone,
and what is pruned on earlier batches alone: so a run that was killed at any moment goes on as if
nothing had happened, and the number of processes changes nothing.
"""

import contextlib
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from awsgd_rl.agents.search_spaces import Range, Space
from awsgd_rl.benchmarks import search
from awsgd_rl.benchmarks.search import Outcome, Subject, Task, Tried, TuneConfig, Tuned
from awsgd_rl.benchmarks.workers import run_tasks
from awsgd_rl.runs import to_json

STUDY_FILE: Final = "study.db"
_RANDOM_TRIALS: Final = 5  # before TPE has enough to learn from, and before anything is pruned
_FIRST_MAPS: Final = 2  # that every trial is measured on: one map alone says too little
_TRIALS_FOR_IMPORTANCES: Final = 10
_STATES: Final = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}

Show = Callable[[float, str], None]
"""Called with the number of trials done, and what has just been measured."""


class SettingError(RuntimeError):
    """The default of an algorithm fails on the task: there is nothing to compare with."""


def tune(
    config: TuneConfig,
    subjects: Sequence[Subject],
    path: str | Path,
    *,
    progress: Show = lambda done, text: None,
) -> list[Tuned]:
    """Try every algorithm's settings, going on with what the study file holds.

    Args:
        config: the budgets and the task.
        subjects: the algorithms, from `make_subject`.
        path: the study file, made if there is none.
        progress: called whenever a setting was measured on a map.

    Returns:
        The trials of each algorithm.

    Raises:
        ValueError: the file is damaged, or of other settings.
        SettingError: an algorithm's default fails.
        KeyboardInterrupt: Ctrl-C; the file holds what was measured.
    """
    with _studies(config, subjects, path) as studies:
        for first in range(0, config.trials, config.batch):
            numbers = range(first, min(first + config.batch, config.trials))
            for study in studies.values():
                _suggest_missing(study, config, numbers)
            _run_batch(config, studies, numbers, progress)
        _check(config, studies)
        return [_tuned(config, subject, studies[subject.label]) for subject in subjects]


# The file


def check_study(config: TuneConfig, subjects: Sequence[Subject], path: str | Path) -> None:
    """Check that a study file can be gone on with.

    Raises:
        ValueError: it is damaged, or of other settings.
    """
    with _studies(config, subjects, path):
        pass


@contextlib.contextmanager
def _studies(
    config: TuneConfig, subjects: Sequence[Subject], path: str | Path
) -> Iterator[dict[str, "_Study"]]:
    import sqlalchemy

    path = Path(path)
    if path.exists():
        _check_file(path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = sqlalchemy.URL.create("sqlite", database=str(path.resolve()))
    try:
        storage = RDBStorage(url.render_as_string())
    except RuntimeError as error:  # of another version of Optuna
        raise ValueError(f"{str(path)!r} cannot be used: {error}") from None
    try:
        yield {subject.label: _Study(storage, config, subject, path) for subject in subjects}
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _check_file(path: Path) -> None:
    """Check that a file is a study, before Optuna would make tables of its own in it.

    Raises:
        ValueError: it is damaged, or no study.
    """
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{str(path)!r} is damaged, or no SQLite file: {error}") from None
    if state != "ok":
        raise ValueError(f"{str(path)!r} is damaged: {state}")
    # None at all: killed before Optuna had made any.
    if tables and "studies" not in tables:
        raise ValueError(f"{str(path)!r} is a database of another program, expected a study")


class _Study:
    """An algorithm's trials in the file."""

    def __init__(
        self, storage: RDBStorage, config: TuneConfig, subject: Subject, path: Path
    ) -> None:
        self.subject = subject
        self.distributions = _distributions(subject.space)
        self.study = optuna.create_study(
            storage=storage,
            study_name=subject.label,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # asked for nothing: `suggest` has its own
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=_RANDOM_TRIALS, n_warmup_steps=_FIRST_MAPS
            ),
        )
        # What another value of would make the trials of the file incomparable with new ones.
        about = to_json(
            {
                "task": config.task,
                "regime": config.regime,
                "length": config.length,
                "seed": config.seed,
                "maps": config.maps,
                "batch": config.batch,
                "space": subject.space,
                "defaults": subject.defaults,
            }
        )
        held = self.study.user_attrs.get("about")
        if held is None and not self.study.trials:
            self.study.set_user_attr("about", about)
        elif held != about:
            names = sorted(name for name in about if (held or {}).get(name) != about[name])
            raise ValueError(
                f"{str(path)!r} holds trials of {subject.label} with another "
                f"{' and '.join(names)}: expected those of this run"
            )

        self.refresh()

    def refresh(self) -> None:
        """Read all trials from the file, by number."""
        self.trials: list[FrozenTrial] = self.study.trials

    def running(self, numbers: Iterable[int]) -> list[FrozenTrial]:
        """Return those of the numbered trials that were not done when the file was read."""
        trials = (self.trials[number] for number in numbers)
        return [trial for trial in trials if trial.state == TrialState.RUNNING]

    def open(self, trial: FrozenTrial) -> optuna.Trial:
        """Return a trial that can be written to."""
        return optuna.Trial(self.study, trial._trial_id)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    distributions: dict[str, BaseDistribution] = {}
    for name, values in space.items():
        if not isinstance(values, Range):
            distributions[name] = CategoricalDistribution(values.values)
        elif isinstance(values.low, int) and isinstance(values.high, int):
            distributions[name] = IntDistribution(values.low, values.high, log=values.log)
        else:
            distributions[name] = FloatDistribution(values.low, values.high, log=values.log)
    return distributions


# Settings


def _suggest_missing(study: _Study, config: TuneConfig, numbers: Iterable[int]) -> None:
    for number in numbers:
        if number < len(study.trials):
            continue
        options = study.subject.default_options
        if number > 0:
            key = [config.seed, number, zlib.crc32(study.subject.label.encode())]
            seed = int(np.random.SeedSequence(key).generate_state(1)[0])
            options = suggest(study.trials, study.distributions, seed)
        # One transaction: a trial is there with its settings, or not there.
        study.study.add_trial(
            create_trial(
                state=TrialState.RUNNING, params=options, distributions=study.distributions
            )
        )
        study.refresh()


def suggest(
    trials: Sequence[FrozenTrial], distributions: dict[str, BaseDistribution], seed: int
) -> dict[str, Any]:
    """Return the settings of the next trial, by the trials so far and a seed alone.

    The tree-structured Parzen estimator (Bergstra et al. 2011), over all options at once; trials
    that are running count as bad ones, so that those beside each other differ.
    """
    with warnings.catch_warnings():
        # Two of its arguments were called experimental before Optuna 5.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM_TRIALS, multivariate=True, constant_liar=True, seed=seed
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study.ask(distributions).params


# Measurements


def _run_batch(
    config: TuneConfig, studies: Mapping[str, _Study], numbers: range, progress: Show
) -> None:
    """Measure the trials of a batch that are not done; prune some, complete the others."""
    judged = min(_FIRST_MAPS, config.maps)
    # Nothing of the first batch can be pruned: all its maps are measured at once.
    for maps in range(config.maps if numbers.start == 0 else judged, config.maps + 1):
        _measure(config, studies, numbers, maps, progress)
        for study in studies.values():
            _judge(config, study, numbers, range(judged, maps + 1))
    for study in studies.values():
        for trial in study.running(numbers):
            study.study.tell(trial.number, float(_values(config, trial).mean()))
        study.refresh()
    progress(len(studies) * numbers.stop, "")


def _measure(
    config: TuneConfig, studies: Mapping[str, _Study], numbers: range, maps: int, progress: Show
) -> None:
    """Measure the running trials on the first `maps` maps, those that are missing."""
    running = {
        (label, trial.number): trial
        for label, study in studies.items()
        for trial in study.running(numbers)
    }
    opened = {key: studies[key[0]].open(trial) for key, trial in running.items()}
    tasks = [
        Task(config, studies[label].subject, number, trial.params, map_)
        for (label, number), trial in running.items()
        for map_ in config.seeds[:maps]
        if _key(map_) not in trial.user_attrs
    ]
    measured = sum(len(_rows(config, trial)) for trial in running.values())
    finished = sum(
        trial.state != TrialState.RUNNING for study in studies.values() for trial in study.trials
    )

    def keep(outcome: Outcome) -> None:
        nonlocal measured
        label = outcome.task.subject.label
        # At once: it is not measured again, whatever happens now.
        opened[label, outcome.task.number].set_user_attr(_key(outcome.task.map), _row(outcome))
        measured += 1
        progress(finished + measured / config.maps, f"{label}: {outcome.mean:.3f}")

    run_tasks(search.measure, tasks, jobs=config.jobs, on_result=keep)
    for study in studies.values():
        study.refresh()


def _judge(config: TuneConfig, study: _Study, numbers: range, steps: range) -> None:
    """Report what the running trials gain over the default on the first maps; prune.

    Args:
        config: the budgets.
        study: whose trials have been measured.
        numbers: the batch.
        steps: numbers of maps to report the mean gain of; they have all been measured on the last.
    """
    default = study.trials[0]
    if _error(config, default):
        raise SettingError(
            f"{study.subject.label} fails with its default settings: {_error(config, default)}"
        )
    for trial in study.running(numbers):
        opened = study.open(trial)
        if _error(config, trial):
            study.study.tell(trial.number, state=TrialState.PRUNED)
            continue
        values = _values(config, trial)
        # Maps differ more than settings do: means can be compared on the same maps only.
        gains = values - _values(config, default)[: len(values)]
        for step in steps:
            if step not in trial.intermediate_values:
                opened.report(float(gains[:step].mean()), step)
        # With all its maps a trial is done; with more than these, it was kept before.
        if len(values) == steps[-1] < config.maps and opened.should_prune():
            study.study.tell(trial.number, state=TrialState.PRUNED)
    study.refresh()


def _check(config: TuneConfig, studies: Mapping[str, _Study]) -> None:
    """Measure the best setting and the default of each algorithm on maps of their own."""
    tasks = [
        Task(config, study.subject, number, study.trials[number].params, map_)
        for study in studies.values()
        for number in sorted({0, _best(study)})
        for map_ in config.check_seeds
        if f"check {number} {map_}" not in study.study.user_attrs
    ]

    def keep(outcome: Outcome) -> None:
        task = outcome.task
        if outcome.error:
            warnings.warn(
                f"trial {task.number} of {task.subject.label} fails on fresh {task.config.unit} "
                f"{task.map}, so there is no check of it: {outcome.error}",
                RuntimeWarning,
                stacklevel=2,
            )
        studies[task.subject.label].study.set_user_attr(
            f"check {task.number} {task.map}", None if outcome.error else outcome.mean
        )

    run_tasks(search.measure, tasks, jobs=config.jobs, on_result=keep)


def _best(study: _Study) -> int:
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value, -trial.number)).number


def _key(map_: int) -> str:
    return f"map {map_}"


def _row(outcome: Outcome) -> dict[str, Any]:
    row = {"metric": outcome.metric, "mean": outcome.mean, "seconds": round(outcome.seconds, 3)}
    return {**row, "error": outcome.error} if outcome.error else row


def _rows(config: TuneConfig, trial: FrozenTrial) -> list[dict[str, Any]]:
    """Return what a trial came to on each of the maps that it was measured on."""
    keys = map(_key, config.seeds)
    return [trial.user_attrs[key] for key in keys if key in trial.user_attrs]


def _values(config: TuneConfig, trial: FrozenTrial) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([row["mean"] for row in _rows(config, trial)], dtype=np.float64)


def _error(config: TuneConfig, trial: FrozenTrial) -> str:
    return next((row["error"] for row in _rows(config, trial) if "error" in row), "")


# Results


def _tuned(config: TuneConfig, subject: Subject, study: _Study) -> Tuned:
    trials = []
    for trial in study.trials:
        rows, error = _rows(config, trial), _error(config, trial)
        trials.append(
            Tried(
                trial.number,
                trial.params,
                "failed" if error else _STATES[trial.state],
                np.array([row["mean"] for row in rows if "error" not in row], dtype=np.float64),
                float(sum(row["seconds"] for row in rows)),
                error,
            )
        )
    attributes = study.study.user_attrs
    check = {}
    for number in sorted({0, _best(study)}):
        values = [attributes[f"check {number} {map_}"] for map_ in config.check_seeds]
        check[number] = np.array([] if None in values else values, dtype=np.float64)
    metric = _rows(config, study.trials[0])[0]["metric"]
    return Tuned(subject, metric, tuple(trials), _importances(config, study), check)


def _importances(config: TuneConfig, study: _Study) -> dict[str, float]:
    """Return the share of the variance that each option explains (fANOVA, Hutter et al. 2014)."""
    values = {trial.value for trial in study.trials if trial.state == TrialState.COMPLETE}
    if len(values) < _TRIALS_FOR_IMPORTANCES:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=config.seed)
    importances = optuna.importance.get_param_importances(study.study, evaluator=evaluator)
    return {name: float(share) for name, share in importances.items()}
