"""What the commands share: their common options, parsing, errors and run folders."""

import contextlib
import copy
import dataclasses
import io
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, final

if TYPE_CHECKING:
    from awsgd_rl.runs import RunFolder

PROGRAM: Final = "awsgd-rl"

_RULE: Final = re.compile("──|-----")


class UsageError(ValueError):
    """What the user asked for cannot be: one line on stderr, exit status 2."""


@dataclass(frozen=True)
class RunOptions:
    """Options of every command that makes a run folder."""

    out: Path | None = None
    """Run folder to write. Default: runs/<command>-<time stamp>."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    quiet: bool = False
    """Print nothing but errors."""
    debug: bool = False
    """Show the traceback of an error."""


def parse(command: str, argv: Sequence[str], description: str, *parts: Any) -> list[Any]:
    """Read a command's options from `argv`.

    Args:
        command: The command's name.
        argv: What follows the command's name.
        description: Shown above the options by `--help`.
        *parts: Dataclasses; their fields are the options, in this order, and the docstrings under
            the fields are the help. A default of None is not shown: the docstring tells it.

    Returns:
        An instance of each part.

    Raises:
        UsageError: If `argv` does not fit the options.
        SystemExit: With status 0, after `--help` printed the help.
    """
    import tyro

    flat = tyro.conf.arg(name="")
    fields = [(f"part{i}", Annotated[_described(part), flat]) for i, part in enumerate(parts)]
    options = dataclasses.make_dataclass("Options", fields)
    program = f"{PROGRAM} {command}"
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            read: Any = tyro.cli(options, prog=program, description=description, args=list(argv))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line_of_tyro(errors.getvalue(), program)) from None
    except ValueError as error:  # of a dataclass that checks its fields
        raise UsageError(str(error)) from error
    return [
        part(
            **{f.name: getattr(getattr(read, f"part{i}"), f.name) for f in dataclasses.fields(part)}
        )
        for i, part in enumerate(parts)
    ]


def _described(part: Any) -> Any:
    """Return a subclass whose annotations tell tyro how its options should read."""
    import tyro

    one_flag: Any = tyro.conf.FlagCreatePairsOff
    hints = typing.get_type_hints(part, include_extras=True)
    fields = []
    for field in dataclasses.fields(part):
        hint = hints[field.name]
        if field.default is None:
            hint = Annotated[hint, tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint="")]
        elif field.default is False:
            hint = Annotated[one_flag[hint], tyro.conf.arg(help_behavior_hint="")]
        # A copy: the dataclass takes it over, and would change the type of the original.
        fields.append((field.name, hint, copy.copy(field)))
    return dataclasses.make_dataclass(part.__name__, fields, bases=(part,), frozen=True)


@contextlib.contextmanager
def bad_usage() -> Iterator[None]:
    """Turn what is raised while a run is being set up into a `UsageError`.

    A value that the settings do not allow, a file that is not there and a package that is not
    installed are the user's to put right; after this block an error means that the run failed.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error) or repr(error)) from error


@contextlib.contextmanager
def run_folder(
    options: RunOptions, command: str, name: str | None = None, *, resume: bool = False
) -> Iterator["Start"]:
    """The block in which a run is set up; what is wrong in it is the user's to put right.

    The block is given `start`, to be called at its end, when the settings are known to be good:
    only then is anything written. `start.path` is known before.

    Args:
        options: Where to write.
        command: The command, for the default path.
        name: The run's name in its `config.json`; the command when None.
        resume: Go on with the run that `options.out` holds.

    Raises:
        UsageError: For anything that `bad_usage` catches, and a folder that cannot be written to.
    """
    from awsgd_rl import runs

    with bad_usage():
        if resume and options.out is None:
            raise UsageError("--resume needs the run to go on with: pass its folder with --out")
        if resume and options.overwrite:
            raise UsageError("--resume and --overwrite are both given, expected one of them")
        if options.out is not None:
            overwrite = options.overwrite or resume
            runs.check_free(options.out, name or command, overwrite=overwrite)
        path = runs.new_folder(command) if options.out is None else options.out
        start = Start(path, name or command, options.overwrite, resume)
        try:
            yield start
        finally:
            # A folder made for a run that did not start would be litter.
            if options.out is None and start.folder is None:
                with contextlib.suppress(OSError):
                    path.rmdir()
                    path.parent.rmdir()


@final
class Start:
    """Makes the run folder when it is called with the run's config."""

    def __init__(self, path: Path, name: str, overwrite: bool, resume: bool) -> None:
        self.path = path
        self.folder: RunFolder | None = None
        self._name, self._overwrite, self._resume = name, overwrite, resume

    def __call__(self, config: Mapping[str, Any]) -> "RunFolder":
        """Write the folder's `config.json`, replacing the old run if that was asked for."""
        from awsgd_rl.runs import RunFolder

        self.folder = RunFolder.create(
            self.path,
            name=self._name,
            config=config,
            overwrite=self._overwrite,
            resume=self._resume,
        )
        return self.folder


def one_line(text: object) -> str:
    """Return the text with every run of white space, line ends included, made one space."""
    return " ".join(str(text).split())


def _one_line_of_tyro(box: str, program: str) -> str:
    """Return what tyro's box of an error says, as one line."""
    # A frame with the title in it; or, where the output is not Unicode, the title and a rule.
    framed = box.lstrip().startswith("╭")
    lines = [
        line.strip("│ ") if not _RULE.search(line) else "" for line in box.strip().splitlines()
    ]
    text = "\n".join(lines if framed else lines[1:]).strip()
    message = one_line(text.split("\n\n")[0]).rstrip(".")
    for pattern, replacement in (
        (r"^Error parsing (\S+): ", r"\1: "),
        (r"no type matching (.+) could be instantiated from \[(.*)\]", r"got \2, expected \1"),
        (r"^Missing from .*?: (\S+).*", r"\1 is missing"),
        (r"^Unrecognized options: (\S+?)(,.*)?$", r"unknown option \1"),
    ):
        message = re.sub(pattern, replacement, message)
    meant = re.search(r"Perhaps you meant:\s+(--[\w-]+)", text)
    suggestion = f": did you mean {meant.group(1)}?" if meant else ""
    return f"{message}{suggestion} (see {program} --help)"
