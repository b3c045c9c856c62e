"""What adaptive draws cost: each training loop beside the same loop with uniform draws.

Both loops run in one process on one thread, a few iterations of the one and of the other by turns,
so that whatever else slows the machine down slows both. The cost is the median over the rounds of
the ratio of times: of the process, which on a quiet machine are the wall clock's. Data are random:
nothing here depends on what is learned.

- *Class bias*: logistic regression, batch 100; AW-SGD with Adagrad. The aim is 1.7 % (Bouchard
  2015, §5, where features are read from a store). `BLOCK` batches are drawn at once and τ moves
  once a block, by all its draws; weights are those of the draws all the same, so the gradient stays
  unbiased. They go in as the gradient of the losses, `losses.backward(weights)`: no operation more
  than uniform draws have, which are written in the same way. `class_bias_each` has a draw and a
  step of τ in every iteration: some twenty calls of PyTorch, each a microsecond or more whatever
  the number of features, and several where the batch has just emptied the processor's cache. The
  share falls as iterations grow, and the microseconds are given too. `bench class-bias` compares
  compiled loops.
- *Table*: a score per example, the output-gradient bound as the signal, on the CNN of Lahire 2023
  (conv 5@5, conv 10@5, fc 4000-100-10, batch 128). The aim is 10 %, at 10^6 examples too.
- *Draw and update* of 256 items against N, which grows with log N at most; beside it what a table
  without a tree costs, whose cumulative sum is computed anew after every write.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from awsgd_rl.benchmarks.summary import add_interval
from awsgd_rl.benchmarks.workers import Progress, one_thread
from awsgd_rl.statistics import Interval, bootstrap_interval

BLOCK: Final = 20
"""Batches that are drawn at once, and that τ takes one step for."""
CLASS_BATCH, TABLE_BATCH, ITEMS = 100, 128, 256
FEATURES: Final = {4_096: 5_000, 16_384: 1_500}
"""Features, and examples: more than a processor's cache holds."""
IMAGES: Final = 4_096
SIZES: Final = {"1e3": 10**3, "1e4": 10**4, "1e5": 10**5, "1e6": 10**6, "1e7": 10**7}

LABELS: Final = {
    "class_bias": "class bias, 4,096 features",
    "class_bias_16384": "class bias, 16,384 features",
    "class_bias_each": "class bias, 4,096 features, each iteration",
    "table": "table, CNN, 60,000 examples",
    "table_1e6": "table, CNN, 1,000,000 examples",
}
AIMS: Final = {
    "class_bias": 1.7,
    "class_bias_16384": 1.7,
    "class_bias_each": 1.7,
    "table": 10.0,
    "table_1e6": 10.0,
}
"""Per cent of the time of an iteration with uniform draws."""

Loop = Callable[[], None]
"""Runs some iterations."""


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    seeds: int | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure all overheads, and the time of a draw and an update against N.

    Args:
        quick: fewer rounds, and N up to 10^6.
        seed: of data, draws and resampling; the times depend on the machine.
        seeds: rounds, in place of 300 (quick: 40).
        progress: called with the share that is done, and what has just been measured.

    Returns:
        One row a round. The summary has `<what>_overhead_percent`, `<what>_extra_us` (what an
        iteration takes longer, in microseconds) and `<what>_iteration_us` (of the uniform loop) for
        each of `LABELS`, with `table_overhead_percent_1e6` for the last; `draw_update_us_1e3` to
        `_1e6` (`_1e7` too unless quick), `rebuilt_us_...`, and `draw_update_growth`: the time at
        10^6 over that at 10^3, at most 2 where it grows with log N at most. All with 95 % intervals
        of the median over rounds.
    """
    rounds = seeds or (40 if quick else 300)
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    sizes = [name for name in SIZES if not (quick and name == "1e7")]
    done, total = 0, len(LABELS) + len(sizes)
    with one_thread():
        for what, (uniform, ours, iterations) in _loops(seed):
            pairs = interleaved(uniform, ours, rounds, iterations)
            rows += [{"what": what, "uniform_us": u, "ours_us": o} for u, o in pairs]
            _add_overhead(summary, what, np.array(pairs), np.random.default_rng(seed))
            done += 1
            progress(done / total, f"{LABELS[what]}: {summary[_percent(what)]:.1f} %")
        medians = {}
        for name in sizes:
            ours, rebuilt = draw_and_update(SIZES[name], seed), rebuild(SIZES[name], seed)
            # What takes milliseconds is called once a round, and not three hundred times.
            calls = max(1, min(20, 10**5 // SIZES[name]))
            repeats = rounds if SIZES[name] < 10**6 else min(rounds, 40)
            pairs = interleaved(rebuilt, ours, repeats, calls, 20)
            rows += [
                {"what": "draw_update", "n": SIZES[name], "rebuilt_us": r, "us": u}
                for r, u in pairs
            ]
            times = np.array(pairs)
            medians[name] = times[:, 1]
            rng = np.random.default_rng(seed)
            add_interval(summary, f"draw_update_us_{name}", _median(times[:, 1], rng))
            add_interval(summary, f"rebuilt_us_{name}", _median(times[:, 0], rng))
            done += 1
            progress(done / total, f"N = {name}: {summary[f'draw_update_us_{name}']:.0f} us")
    growth = bootstrap_interval(
        lambda large, small, axis: np.median(large, axis) / np.median(small, axis),
        medians["1e6"],
        medians["1e3"],
        rng=np.random.default_rng(seed),
    )
    add_interval(summary, "draw_update_growth", growth)
    return rows, summary


def interleaved(
    first: Loop, second: Loop, rounds: int, calls: int, second_calls: int | None = None
) -> list[tuple[float, float]]:
    """Return [rounds] microseconds of a call of each of two loops, measured by turns.

    Args:
        first: a loop.
        second: another one.
        rounds: how often both are measured; which one comes first alternates.
        calls: by how many the time of a round is divided, and calls of the first.
        second_calls: calls of the second, in place of `calls`.
    """
    counts = {first: calls, second: second_calls or calls}
    for loop in counts:  # compiles, and warms the caches
        loop()
        loop()
    times: list[tuple[float, float]] = []
    for k in range(rounds):
        taken = {}
        for loop in (first, second) if k % 2 else (second, first):
            begin = time.process_time()
            for _ in range(counts[loop]):
                loop()
            taken[loop] = 1e6 * (time.process_time() - begin) / counts[loop]
        times.append((taken[first], taken[second]))
    return times


def _loops(seed: int) -> Iterator[tuple[str, tuple[Loop, Loop, int]]]:
    """Yield for each of `LABELS` the uniform loop, ours, and calls a round."""
    for features, examples in FEATURES.items():
        name = "class_bias" if features == 4_096 else f"class_bias_{features}"
        yield name, (*class_bias(features, examples, BLOCK, seed), 1)
        if features == 4_096:
            yield "class_bias_each", (*class_bias(features, examples, 1, seed), BLOCK)
    yield "table", (*table(60_000, seed), 1)
    yield "table_1e6", (*table(10**6, seed), 1)


def class_bias(features: int, examples: int, block: int, seed: int) -> tuple[Loop, Loop]:
    """Return two loops of `block` iterations of logistic regression: uniform, and by class.

    Classes are equally frequent and alike, so that τ stays near 0: elsewhere examples of a rare
    class are drawn more often, and found in the processor's cache.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from awsgd_rl.adaptation import ScoreFunctionAdaptation
    from awsgd_rl.proposals import ClassProposal
    from awsgd_rl.signals import binary_cross_entropy_signal
    from awsgd_rl.weights import importance_weights

    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, features, generator=rng)
    classes = torch.randint(2, (examples,), generator=rng)
    y, lengths = classes.float(), torch.linalg.vector_norm(x, dim=1)
    count = block * CLASS_BATCH
    # One place for all batches: memory that is taken anew may or may not cost a page fault for
    # each of its pages, by where it happens to lie, and that is more than all else here.
    place = torch.empty(CLASS_BATCH, features)

    even = torch.full((CLASS_BATCH,), 1.0 / CLASS_BATCH)

    def step(model: Any, optimizer: Any, items: Tensor, weights: Tensor) -> Tensor:
        output: Tensor = model(torch.index_select(x, 0, items, out=place)).squeeze(1)
        targets = y.index_select(0, items)
        losses = binary_cross_entropy_with_logits(output, targets, reduction="none")
        optimizer.zero_grad()
        losses.backward(weights)  # type: ignore[no-untyped-call]
        optimizer.step()
        return output.detach()

    plain = torch.nn.Linear(features, 1)
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3)

    def uniform() -> None:
        drawn = torch.randint(examples, (count,), generator=rng)
        for items in torch.split(drawn, CLASS_BATCH):
            step(plain, plain_optimizer, items, even)

    model = torch.nn.Linear(features, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    proposal = ClassProposal(classes, 2)
    adaptation = ScoreFunctionAdaptation(
        proposal, torch.optim.Adagrad(proposal.parameters(), lr=0.1)
    )
    log_p = torch.full((count,), -math.log(examples), dtype=torch.float64)

    def ours() -> None:
        draw = proposal.draw(count, generator=rng)
        weights = importance_weights(log_p, draw.log_q).div_(CLASS_BATCH).float()
        batches = zip(
            torch.split(draw.items, CLASS_BATCH), torch.split(weights, CLASS_BATCH), strict=True
        )
        outputs = [step(model, optimizer, *batch) for batch in batches]
        # The exact norm of each gradient, as in the paper: lengths were taken once.
        signal = binary_cross_entropy_signal(torch.cat(outputs), y.index_select(0, draw.items))
        adaptation.update(draw, signal * lengths.index_select(0, draw.items), log_p)

    return uniform, ours


def table(examples: int, seed: int) -> tuple[Loop, Loop]:
    """Return two loops of one iteration of a CNN: uniform, and by a table of `examples` scores."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    from awsgd_rl.adaptation import TableAdaptation
    from awsgd_rl.proposals import TableProposal
    from awsgd_rl.signals import cross_entropy_signal
    from awsgd_rl.weights import importance_weights

    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(IMAGES, 1, 28, 28, generator=rng)
    labels = torch.randint(10, (IMAGES,), generator=rng)

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(
            nn.Conv2d(1, 5, 5), nn.ReLU(), nn.Conv2d(5, 10, 5), nn.ReLU(), nn.Flatten(),
            nn.Linear(4000, 100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip
        return model, torch.optim.SGD(model.parameters(), lr=1e-3)

    plain, plain_optimizer = make()
    even = torch.full((TABLE_BATCH,), 1.0 / TABLE_BATCH)

    def uniform() -> None:
        rows = torch.randint(examples, (TABLE_BATCH,), generator=rng) % IMAGES
        output = plain(images.index_select(0, rows))
        losses = cross_entropy(output, labels.index_select(0, rows), reduction="none")
        plain_optimizer.zero_grad()
        losses.backward(even)  # type: ignore[no-untyped-call]
        plain_optimizer.step()

    model, optimizer = make()
    proposal = TableProposal(examples, uniform_share=0.2)
    adaptation = TableAdaptation(proposal, decay=0.5)
    log_p = torch.full((TABLE_BATCH,), -math.log(examples), dtype=torch.float64)

    def ours() -> None:
        draw = proposal.draw(TABLE_BATCH, generator=rng)
        rows = draw.items % IMAGES
        y = labels.index_select(0, rows)
        output = model(images.index_select(0, rows))
        weights = importance_weights(log_p, draw.log_q).div_(TABLE_BATCH).float()
        losses = cross_entropy(output, y, reduction="none")
        optimizer.zero_grad()
        losses.backward(weights)  # type: ignore[no-untyped-call]
        optimizer.step()
        adaptation.update(draw, cross_entropy_signal(output, y), log_p)

    return uniform, ours


def draw_and_update(n: int, seed: int) -> Loop:
    """Return a loop that draws and writes 256 items of a table of n scores, by its tree."""
    import torch

    from awsgd_rl.adaptation import TableAdaptation
    from awsgd_rl.proposals import TableProposal

    rng = torch.Generator().manual_seed(seed)
    proposal = TableProposal(torch.rand(n, generator=rng, dtype=torch.float64), uniform_share=0.2)
    adaptation = TableAdaptation(proposal)
    signals = torch.rand(ITEMS, generator=rng, dtype=torch.float64)

    def loop() -> None:
        adaptation.update(proposal.draw(ITEMS, generator=rng), signals)

    return loop


def rebuild(n: int, seed: int) -> Loop:
    """Return the same loop without a tree: the cumulative sum is computed anew for each draw."""
    import torch

    from awsgd_rl.sampling import cumulative_scores, draw_uniforms, sample_from_cumulative

    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, generator=rng, dtype=torch.float64)
    signals = torch.rand(ITEMS, generator=rng, dtype=torch.float64)

    def loop() -> None:
        cumulative = cumulative_scores(scores)
        items = sample_from_cumulative(cumulative, draw_uniforms(ITEMS, generator=rng))
        (scores.index_select(0, items) / cumulative[-1]).log_()
        scores.index_copy_(0, items, signals)

    return loop


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `overhead`: the costs beside what is aimed at, and the time of a draw against N."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from awsgd_rl import plots

    left, right = plots.PALETTE[0], plots.PALETTE[2]
    with matplotlib.rc_context(plots._STYLE):
        figure = Figure(figsize=(11.0, 4.0), dpi=plots._DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.265, 0.15, 0.28, 0.64))
        for k, what in enumerate(LABELS):
            name = _percent(what)
            at, start, end = (summary[name + part] for part in ("", "_low", "_high"))
            axes.plot([start, end], [k, k], color=left, linewidth=2)
            axes.plot(at, k, "o", color=left, markersize=6)
            axes.plot([AIMS[what]] * 2, [k - 0.35, k + 0.35], color=plots.PALETTE[1], linewidth=2)
            extra = f"{at:.1f}%  (+{summary[f'{what}_extra_us']:.0f} µs)"
            axes.annotate(
                extra, (end, k), (7, 0), textcoords="offset points", va="center", fontsize=9.5
            )
        axes.set_yticks(range(len(LABELS)), list(LABELS.values()), fontsize=9.5)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(LABELS) - 0.5, -0.5)
        highest = max(summary[_percent(what) + "_high"] for what in LABELS)
        lowest = min(0.0, *(summary[_percent(what) + "_low"] for what in LABELS))
        axes.set_xlim(lowest - 1.0, 1.5 * max(highest, 12.0))
        axes.set_xlabel("longer than with uniform draws, % (bar: the aim)")
        axes = figure.add_axes((0.66, 0.15, 0.325, 0.64))
        names = [name for name in SIZES if f"draw_update_us_{name}" in summary]
        at_n = [SIZES[name] for name in names]
        for kind, label, color in (
            ("draw_update_us", "sum tree", left),
            ("rebuilt_us", "cumulative sum,\nrebuilt", right),
        ):
            estimate = [summary[f"{kind}_{name}"] for name in names]
            low, high = ([summary[f"{kind}_{name}_{e}"] for name in names] for e in ("low", "high"))
            axes.fill_between(at_n, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(at_n, estimate, "o-", color=color, markersize=4, linewidth=1.8)
            axes.annotate(
                label, (at_n[-1], estimate[-1]), (-6, 9), textcoords="offset points",
                color=color, ha="right", fontsize=9.8,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("items N")
        axes.set_ylabel("µs to draw and write 256")
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
        axes.set_axisbelow(True)
        rounds = sum(row["what"] == "class_bias" for row in rows)
        plots._headline(
            figure,
            "What adaptive draws cost",
            f"an iteration on one thread, {rounds} interleaved rounds; medians with 95% intervals",
            left=0.012,
        )
    return plots.save_figure(figure, folder, "overhead")


def _percent(what: str) -> str:
    return "table_overhead_percent_1e6" if what == "table_1e6" else f"{what}_overhead_percent"


def _median(samples: Any, rng: np.random.Generator) -> Interval:
    return bootstrap_interval(np.median, samples, rng=rng)


def _add_overhead(
    summary: dict[str, float], what: str, pairs: Any, rng: np.random.Generator
) -> None:
    iterations = BLOCK if what in ("class_bias", "class_bias_16384") else 1
    uniform, ours = pairs[:, 0] / iterations, pairs[:, 1] / iterations
    add_interval(summary, _percent(what), _median(100.0 * (ours / uniform - 1.0), rng))
    add_interval(summary, f"{what}_extra_us", _median(ours - uniform, rng))
    add_interval(summary, f"{what}_iteration_us", _median(uniform, rng))
