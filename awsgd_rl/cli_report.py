"""`awsgd-rl report`: a page of figures from one or more run folders."""

import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from awsgd_rl.cli_common import UsageError, bad_usage, parse
from awsgd_rl.cli_output import Output

DESCRIPTION = """Write one HTML page with the figures, tables and settings of runs.

examples:
  awsgd-rl report runs/compare-20260101-120000 --open
  awsgd-rl report runs/a runs/b --out both.html
"""


@dataclass(frozen=True)
class ReportOptions:
    """What to show."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...", help_behavior_hint="")]
    """Run folders, shown in this order."""
    open: bool = False
    """Show the page in the browser."""
    out: Path | None = None
    """The file to write, or a folder for it. Default: report.html in the first run folder."""
    overwrite: bool = False
    """Replace a file that is there."""
    quiet: bool = False
    """Print nothing but errors."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    options: ReportOptions
    (options,) = parse("report", argv, DESCRIPTION, ReportOptions)
    from awsgd_rl.report import write_report

    out = options.out
    with bad_usage():
        if out is not None and out.is_dir():
            out = out / "report.html"
        if out is not None and out.exists() and not options.overwrite:
            raise UsageError(f"{str(out)!r} is there already: pass --overwrite to replace it")
        path = write_report(options.folders, out)
    Output(quiet=options.quiet).wrote(path)
    if options.open:
        webbrowser.open(path.resolve().as_uri())
