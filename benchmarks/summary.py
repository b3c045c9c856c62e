"""What the summary of every bench has in common."""

from awsgd_rl.statistics import Interval


def add_interval(summary: dict[str, float], name: str, interval: Interval) -> None:
    """Enter an estimate under `name`, and its ends under `<name>_low` and `<name>_high`."""
    summary[name] = interval.estimate
    summary[f"{name}_low"], summary[f"{name}_high"] = interval.low, interval.high
