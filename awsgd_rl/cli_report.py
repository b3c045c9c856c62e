"""`awsgd-rl report`: a page of figures from one or more run folders."""

import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from awsgd_rl.cli_common import UsageError, bad_usage, parse
from awsgd_rl.cli_output import Output

DESCRIPTION = """Write one HTML page about runs, to be looked at in any browser.

The page is a single file that needs no server and no network: tables with
intervals, curves to zoom into, figures, settings, and the command that makes
each run again. Of a table that `train` let learn on a gridworld it shows the
map too: both policies and the trajectories drawn from them, with a slider
over training. Curves that several runs share are also drawn together.
A page with curves holds a copy of plotly.js: 5 MB.

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
    """The file to write, which gets the suffix .html if it has none, or a folder for it. Default:
    report.html in the first run folder."""
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
    from awsgd_rl.report import report_path, write_report

    with bad_usage():
        target = report_path(options.folders, options.out)
        if options.out is not None and target.exists() and not options.overwrite:
            raise UsageError(f"{str(target)!r} is there already: pass --overwrite to replace it")
        path = write_report(options.folders, target)
    Output(quiet=options.quiet).wrote(path)
    if options.open:
        webbrowser.open(path.resolve().as_uri())
