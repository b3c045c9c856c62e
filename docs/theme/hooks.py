"""What the documentation's site needs beside its pages (see mkdocs.yml).

- Pages link to committed results as `../benchmarks/results/...`, which works where the repository
  is looked at. The files are outside `docs/`: those that are linked are added to the site.
- `<!-- awsgd-rl train --help -->` on a line of its own becomes that command and what it prints.
- The API reference is read from a tree that looks as the package does once it is installed.
- A page that would load a script, a style or a picture from elsewhere fails the build.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGE = ROOT / "build" / "docs" / "awsgd_rl"

_RESULT_LINK = re.compile(r"\]\((?:\.\./)+benchmarks/results/([^)#]+)\)")
_COMMAND = re.compile(r"^<!-- awsgd-rl (.+) -->$", re.MULTILINE)
_FROM_ELSEWHERE = re.compile(
    # A canonical link, of which a served page has one to itself, is only a name.
    r"<(?:script|link(?! rel=\"canonical\")|img|iframe|source|video)\b"
    r"(?:[^>\"']|\"[^\"]*\"|'[^']*')*?"
    r"\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
)


@event_priority(100)  # before mkdocstrings, which looks for the tree
def on_config(config: Any) -> Any:
    """Copy the package's modules, those of its mapped folders too, into one tree."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    for folder in (ROOT / name for name in ("awsgd_rl", "envs", "agents", "benchmarks")):
        tree = PACKAGE if folder.name == PACKAGE.name else PACKAGE / folder.name
        tree.mkdir(parents=True)
        for module in folder.glob("*.py"):
            shutil.copyfile(module, tree / module.name)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the results that pages link to."""
    for page in files.documentation_pages():
        for linked in _RESULT_LINK.findall(page.content_string):
            name = file_of(linked)
            # One that is missing is not added: its link is reported as broken.
            if (RESULTS / name).is_file() and files.get_file_from_path(f"results/{name}") is None:
                files.append(
                    File.generated(config, f"results/{name}", abs_src_path=str(RESULTS / name))
                )
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to results into links within the site, and run commands."""
    up = "../" * page.file.src_uri.count("/")
    markdown = _RESULT_LINK.sub(lambda link: f"]({up}results/{file_of(link[1])})", markdown)
    return _COMMAND.sub(lambda found: printed(found[1]), markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse what would be loaded from elsewhere: the site is read offline too."""
    if found := _FROM_ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri} loads {found[0]}: keep it in docs/")
    return output


def file_of(linked: str) -> str:
    """Return the file that a link to results is about: a folder's is its `results.json`."""
    linked = linked.rstrip("/")
    return linked if Path(linked).suffix else f"{linked}/results.json"


def printed(arguments: str) -> str:
    """Return a code block of a command and what it prints."""
    from awsgd_rl.cli import main

    os.environ["COLUMNS"] = "96"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(shlex.split(arguments))
    if status != 0:
        raise PluginError(f"`awsgd-rl {arguments}` ended with exit status {status}")
    return f"```text\n$ awsgd-rl {arguments}\n{out.getvalue().rstrip()}\n```"
