"""A progress bar for `learn(progress_bar=True)`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def track(total: int, unit: str, show: bool) -> Iterator[Callable[[int, str], None]]:
    """Give a function that moves the bar on: by how many units, and what to say beside it.

    Args:
        total: units until the bar is full.
        unit: what is counted, in the plural.
        show: False shows nothing.
    """
    if not show:
        yield lambda _done, _text: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.description}}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=total)
        yield lambda done, text: progress.update(bar, advance=done, description=text)
