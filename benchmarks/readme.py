"""The tables of README.md and docs/, made from the committed results.

    python -m awsgd_rl.benchmarks.readme      (or `make readme`, from the repository's root)

What stands between `<!-- NAME -->` and `<!-- end -->` is replaced by the table of that name, so
that no figure is ever typed. A test checks that nothing would change.
"""

import re
import sys
from pathlib import Path
from typing import Final

from awsgd_rl.benchmarks import readme_replay, readme_rl, readme_scaling, readme_supervised

PAGES: Final = (
    "README.md",
    "docs/exploration.md",
    "docs/supervised-results.md",
    "docs/replay.md",
    "docs/scaling.md",
    "docs/guides/running.md",
)
_MARKED: Final = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(root: Path = Path()) -> None:
    """Write the tables into the pages under `root`."""
    for page in PAGES:
        path = root / page
        path.write_text(filled(path.read_text(encoding="utf-8"), root), encoding="utf-8")
        sys.stdout.write(f"wrote {path}\n")


def filled(text: str, root: Path) -> str:
    """Return a page with its tables made anew.

    Raises:
        KeyError: there is no table of that name, or the results lack a number.
    """
    return _MARKED.sub(lambda found: found[1] + TABLES[found[2]](root) + "\n" + found[3], text)


TABLES: Final = {
    **readme_rl.TABLES,
    **readme_supervised.TABLES,
    **readme_replay.TABLES,
    **readme_scaling.TABLES,
}
"""Every table, by name: what makes it from the results under a repository's root."""


if __name__ == "__main__":
    main()
