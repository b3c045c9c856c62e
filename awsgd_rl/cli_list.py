"""`awsgd-rl list`: the names that the other commands take."""

from collections.abc import Sequence
from dataclasses import dataclass

from awsgd_rl.cli_common import parse
from awsgd_rl.cli_output import Output

DESCRIPTION = """Show environments, presets, algorithms and benches, each with a line.

examples:
  awsgd-rl list
"""


@dataclass(frozen=True)
class ListOptions:
    """No options but --debug."""

    debug: bool = False
    """Show the traceback of an error."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    parse("list", argv, DESCRIPTION, ListOptions)
    import gymnasium

    from awsgd_rl.agents import ALGORITHMS
    from awsgd_rl.benchmarks.trial import ALGORITHMS as COMPARED
    from awsgd_rl.cli_bench import BENCHES
    from awsgd_rl.envs.presets import GRIDWORLD_ID, PRESETS

    others = sum(not name.startswith("awsgd_rl/") for name in gymnasium.registry)
    out = Output()
    sections = {
        "algorithms (train --algo)": {
            algorithm.name: algorithm.description for algorithm in ALGORITHMS.values()
        },
        "algorithms (compare --algos)": {name: item.title for name, item in COMPARED.items()},
        "environments (--env)": {
            GRIDWORLD_ID: "traps and a goal on a grid; options in --env-kwargs",
            "any Gymnasium id": f"{others} registered here, CartPole-v1 for one; or module:id",
        },
        "presets (--preset)": {
            name: f"{preset.description}; id {preset.id}" for name, preset in PRESETS.items()
        },
        "benches (bench NAME)": {name: bench.description for name, bench in BENCHES.items()},
    }
    width = max(len(name) for names in sections.values() for name in names)
    for title, names in sections.items():
        out.line(title)
        for name, text in names.items():
            out.line(f"  {name:<{width}}  {text}")
        out.line("")
