"""What a replay buffer costs: draws, gathers and updates beside uniform draws, and beside peers.

Transitions have 8 numbers of float32, the next ones, a discrete action, a reward and an end; they
come from 64 environments (one, for single adds). A step is a batch drawn by priority and gathered,
and its priorities written; each is another one than before, since cpprb skips those that are there
already. The peers' samples come with weights, so beside them ours computes them too, by
`annealed_weights`. Stable-Baselines3's buffer draws uniformly, and has nothing to weight or to
write. Peers are measured where they are installed.

On one core, all sides a few calls each by turns in one process, so that whatever slows the machine
slows all of them: a time is the median over rounds, a ratio the median of the rounds' ratios. The
time is that of the process, which on a quiet machine is the wall clock's. On a CUDA device it is
between two events: what the device takes, and what it waits for the host.

The wheel of torchrl 0.14 does not load its trees under PyTorch 2.13: they are compiled anew from
the sources that it brings, `torchrl/csrc`, with `torch.utils.cpp_extension`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from awsgd_rl.benchmarks.summary import add_interval
from awsgd_rl.benchmarks.workers import Progress, one_thread
from awsgd_rl.statistics import Band, Interval, bootstrap_interval

if TYPE_CHECKING:
    from awsgd_rl.benchmarks.replay_peers import Calls

CAPACITIES: Final = {"10k": 10**4, "100k": 10**5, "1m": 10**6, "10m": 10**7}
"""The largest one on CUDA only."""
BATCHES: Final = (32, 256, 4_096)
ENVS, CUDA_ENVS = 64, 4_096
PEERS: Final = ("cpprb", "tianshou", "torchrl")
LABELS: Final = {
    "ours": "this package",
    "weighted": "this package, with weights",
    "sb3_uniform": "SB3, uniform",
    "cpprb": "cpprb",
    "tianshou": "tianshou",
    "torchrl": "torchrl",
}

Loop = Callable[[], object]
Timer = Callable[[Loop, int], float]
"""Of a loop and a number of calls: the microseconds of one."""
Times = dict[str, NDArray[np.float64]]
"""[rounds] microseconds of a call, by side."""


def run(
    quick: bool = False,
    seed: int = 0,
    *,
    seeds: int | None = None,
    progress: Progress = lambda share, text: None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure every capacity and batch size.

    Args:
        quick: fewer rounds, and of the capacities 10^4 and 10^6 alone (on CUDA 10^6).
        seed: of transitions, draws and resampling; the times depend on the machine.
        seeds: rounds, in place of 200 (quick: 20).
        progress: called with the share that is done, and what has just been measured, or which
            peer is left out and why.

    Returns:
        One row a round. The summary has for each batch size and capacity, as in `_256_1m`:
        `cpu_sample_update_us_256_1m`, of ours, and with `_weighted` behind it ours with weights,
        with `_cpprb` and so on the peers', with `_sb3_uniform` SB3's uniform sample; the ratios
        `cpu_vs_sb3_uniform_256_1m` (ours over SB3's; `cpu_weighted_vs_sb3_uniform_256_1m` with
        weights) and `cpu_vs_cpprb_256_1m` (the peer's over ours with weights;
        `cpu_unweighted_vs_cpprb_256_1m` without), those of 256 and 10^6 also as
        `cpu_vs_sb3_uniform`, `cpu_vs_cpprb`. Where there is a CUDA device the same with `cuda` in
        place of `cpu`. Then `cpu_add_us_1` and `cpu_add_us_64`, for a call, with `_cpprb` and so
        on those of others; and `bytes_per_transition`, of ours at 10^6. All times and ratios with
        95 % intervals of the median over rounds.
    """
    import torch

    rounds = seeds or (20 if quick else 200)
    plan = [("cpu", name) for name in (("10k", "1m") if quick else ("10k", "100k", "1m"))]
    if torch.cuda.is_available():
        plan += [("cuda", name) for name in (("1m",) if quick else CAPACITIES)]
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    total = rounds * (len(BATCHES) * len(plan) + 2)

    def measure(what: str, device: str, batch: int, name: str, loops: Mapping[str, Loop]) -> None:
        calls = 2 if batch > 1_000 else 10
        times = by_turns(loops, rounds, calls, cuda_time if device == "cuda" else cpu_time)
        about = {"what": what, "device": device, "batch": batch, "capacity": name}
        for k in range(rounds):
            rows.append(about | {f"{side}_us": float(us[k]) for side, us in times.items()})
        told = ", ".join(f"{LABELS[side]} {np.median(us):.0f} us" for side, us in times.items())
        progress(len(rows) / total, f"{device}, {what} {batch} of {name}: {told}")

    with one_thread():
        peers = {device: _usable(device, progress) for device in dict(plan)}
        single = _build(peers["cpu"], "cpu", CAPACITIES["100k"], 1, seed)
        measure("add", "cpu", 1, "100k", _adds(single))
        for device, name in plan:
            n_envs = ENVS if device == "cpu" else CUDA_ENVS
            sides = _build(peers[device], device, CAPACITIES[name], n_envs, seed)
            for batch in BATCHES:
                measure("step", device, batch, name, _steps(sides, batch))
            if (device, name) == ("cpu", "1m"):
                measure("add", "cpu", ENVS, name, _adds(sides))
                summary["bytes_per_transition"] = sides["ours"].bytes_per_transition
    return rows, summarise(rows, seed) | summary


def summarise(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, float]:
    """Medians of times and ratios, with intervals."""
    summary: dict[str, float] = {}
    rng = np.random.default_rng(seed)
    keys = ("device", "what", "batch", "capacity")
    for device, what, batch, name in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        own = [row for row in rows if tuple(row[k] for k in keys) == (device, what, batch, name)]
        times = {side: _column(own, side) for side in LABELS if f"{side}_us" in own[0]}
        for side, us in times.items():
            key = f"add_us_{batch}" if what == "add" else f"sample_update_us_{batch}_{name}"
            behind = "" if side == "ours" else f"_{side}"
            add_interval(summary, f"{device}_{key}{behind}", _median(us, rng))
        if what == "add":
            continue
        ratios = {}
        for peer in (peer for peer in PEERS if peer in times):
            ratios[f"vs_{peer}"] = times[peer] / times["weighted"]
            ratios[f"unweighted_vs_{peer}"] = times[peer] / times["ours"]
        if "sb3_uniform" in times:
            ratios["vs_sb3_uniform"] = times["ours"] / times["sb3_uniform"]
            ratios["weighted_vs_sb3_uniform"] = times["weighted"] / times["sb3_uniform"]
        for key, samples in ratios.items():
            ratio = _median(samples, rng)
            add_interval(summary, f"{device}_{key}_{batch}_{name}", ratio)
            if (batch, name) == (256, "1m"):
                add_interval(summary, f"{device}_{key}", ratio)
    return summary


def by_turns(loops: Mapping[str, Loop], rounds: int, calls: int, timer: Timer) -> Times:
    """Time each of several loops a few calls at a time; which one comes first goes round."""
    for loop in loops.values():  # compiles, and warms the caches
        loop()
        loop()
    names = list(loops)
    times: Times = {name: np.empty(rounds) for name in names}
    for k in range(rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            times[name][k] = timer(loops[name], calls)
    return times


def cpu_time(loop: Loop, calls: int) -> float:
    """Microseconds of this process."""
    begin = time.process_time()
    for _ in range(calls):
        loop()
    return 1e6 * (time.process_time() - begin) / calls


def cuda_time(loop: Loop, calls: int) -> float:
    """Microseconds between two events of the device's stream, idle ones included."""
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        loop()
    end.record()
    end.synchronize()
    return 1e3 * float(begin.elapsed_time(end)) / calls


def _usable(device: str, progress: Progress) -> list[str]:
    """Names of the peers that work here; `progress` is told of the others."""
    usable = []
    for name in PEERS if device == "cpu" else ("torchrl",):
        if find_spec(name) is None:
            progress(0.0, f"{name} is left out, it is not installed: pip install {name}")
            continue
        try:
            _build([name], device, 128, 1, 0)
        # Whatever it is: a peer with a broken installation must not end the bench.
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            progress(0.0, f"{name} is left out, it does not work here on {device}: {why}")
        else:
            usable.append(name)
    return usable


def _build(
    peers: Sequence[str], device: str, capacity: int, n_envs: int, seed: int
) -> dict[str, "Calls"]:
    """Full buffers of ours, of SB3 (on the CPU) and of these peers."""
    from awsgd_rl.benchmarks import replay_peers

    given = replay_peers.make_transitions(n_envs, seed, rows=2**16 // n_envs)
    names = ["ours", *(["sb3_uniform"] if device == "cpu" else []), *peers]
    on = {"device": device} if device != "cpu" else {}
    return {name: getattr(replay_peers, name)(capacity, given, seed, **on) for name in names}


def _steps(sides: Mapping[str, "Calls"], batch: int) -> dict[str, Loop]:
    steps: dict[str, Loop] = {}
    for side, calls in sides.items():
        # Of ours both are measured, on one buffer.
        steps["weighted" if calls.unweighted else side] = partial(calls.step, batch)
        if calls.unweighted:
            steps[side] = partial(calls.unweighted, batch)
    return steps


def _adds(sides: Mapping[str, "Calls"]) -> dict[str, Loop]:
    return {side: calls.add for side, calls in sides.items() if calls.add is not None}


def _column(rows: Sequence[Mapping[str, Any]], side: str) -> NDArray[np.float64]:
    return np.array([row[f"{side}_us"] for row in rows])


def _median(samples: NDArray[np.float64], rng: np.random.Generator) -> Interval:
    return bootstrap_interval(np.median, samples, rng=rng)


def write_figures(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, float], folder: str | Path
) -> list[Path]:
    """Draw `replay`: the time of a step over the capacity, a panel a batch size and device."""
    from awsgd_rl import plots
    from awsgd_rl.plots_panels import Curve, curve_panels

    steps = [row for row in rows if row["what"] == "step"]
    panels: dict[str, dict[str, Curve]] = {}
    for device, batch in dict.fromkeys((row["device"], row["batch"]) for row in steps):
        panel = panels.setdefault(f"{device.upper()}, batch of {batch:,}", {})
        for side, label in LABELS.items():
            behind = "" if side == "ours" else f"_{side}"
            keys = {
                n: f"{device}_sample_update_us_{batch}_{name}{behind}"
                for name, n in CAPACITIES.items()
            }
            at = [n for n, key in keys.items() if key in summary]
            if at:
                ends = ("", "_low", "_high")
                band = Band(*(np.array([summary[keys[n] + end] for n in at]) for end in ends))
                panel[label] = Curve(np.array(at, float), band)
    rounds = sum(
        all(row[k] == steps[0][k] for k in ("device", "batch", "capacity")) for row in steps
    )
    figure = curve_panels(
        panels,
        title="What a batch from a replay buffer costs",
        subtitle=f"drawn, gathered and its priorities written; one core, {rounds} rounds by turns",
        xlabel="capacity, transitions",
        ylabel="µs, log scale",
        log_x=True,
        percent=False,
    )
    for axes in figure.axes:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        ticks = [t * 10.0**k for k in range(6) for t in (1, 2, 5) if low <= t * 10.0**k <= high]
        axes.set_yticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.set_yticks([], minor=True)
    return plots.save_figure(figure, folder, "replay")
