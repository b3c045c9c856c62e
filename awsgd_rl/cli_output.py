"""What the commands print: numbers with intervals, tables, progress."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from rich.console import Console

Update = Callable[[float, str], None]

_PLAIN_SECONDS: Final = 10.0  # between two progress lines where there is no terminal


def format_number(value: float | None) -> str:
    """Return the number with as many digits as a reader wants; "-" when there is none."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    magnitude = abs(value)
    if isinstance(value, int) or magnitude >= 1000:
        return f"{value:,.0f}"
    if 0 < magnitude < 0.01:
        return f"{value:.3g}"
    return f"{value:.1f}" if magnitude >= 100 else f"{value:.{2 if magnitude >= 10 else 3}f}"


def format_interval(summary: Mapping[str, Any], name: str) -> str:
    """Return `summary[name]` with its 95 % interval: "0.984 [0.981, 0.987]"."""
    keys = (name, f"{name}_low", f"{name}_high")
    text, low, high = (format_number(summary.get(key)) for key in keys)
    return text if low == high == "-" else f"{text} [{low}, {high}]"


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return [N] (name, number with its interval) for every name of a summary."""
    ends = {f"{name}{end}" for name in summary for end in ("_low", "_high")}
    return [(name, format_interval(summary, name)) for name in summary if name not in ends]


@final
class Output:
    """What a command prints: in colour with a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console: Console | None = None

    @property
    def console(self) -> "Console":
        """The console, on the present standard output."""
        if self._console is None:
            from rich.console import Console

            # A table must not be folded because a file has no width.
            width = None if sys.stdout.isatty() else 200
            self._console = Console(
                width=width, quiet=self.quiet, highlight=False, markup=False, emoji=False
            )
        return self._console

    def line(self, text: str) -> None:
        """Print one line, as it is: paths are not folded."""
        self.console.print(text, soft_wrap=True)

    def wrote(self, *paths: Path) -> None:
        """Print the paths of what was written."""
        for path in paths:
            self.line(f"wrote {path}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table: columns of numbers to the right, the others to the left."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        self.line("")
        self.line(title)
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for index, column in enumerate(columns):
            words = any(row[index][:1].isalpha() for row in rows)
            table.add_column(column, justify="left" if words else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextlib.contextmanager
    def progress(self, title: str, total: float, unit: str) -> Iterator[Update]:
        """Show how far a run is; the block is given `update(done, text)`.

        Args:
            title: What is running.
            total: What `done` will be at the end.
            unit: What is counted ("episodes").
        """
        if self.quiet:
            yield lambda done, text: None
        elif self.console.is_terminal:
            with self._bar(title, total, unit) as update:
                yield update
        else:
            yield self._lines(title, total, unit)

    @contextlib.contextmanager
    def _bar(self, title: str, total: float, unit: str) -> Iterator[Update]:
        from rich import progress

        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=20),
            progress.TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[text]}"),
            console=self.console,
        )
        with bar:
            task = bar.add_task(title, total=total, text="")
            yield lambda done, text: bar.update(task, completed=done, text=text)

    def _lines(self, title: str, total: float, unit: str) -> Update:
        printed_at, printed = time.monotonic(), 0.0

        def update(done: float, text: str) -> None:
            nonlocal printed_at, printed
            now = time.monotonic()
            at_end = done >= total > printed
            if now - printed_at < _PLAIN_SECONDS and not at_end:
                return
            printed_at, printed = now, done
            state = f"{title}: {done:,.0f} of {total:,.0f} {unit}"
            self.line(f"{state}, {text}" if text else state)

        return update
