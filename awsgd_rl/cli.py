"""The command `awsgd-rl`: finds the sub-command, loads only its module, reports its errors.

Exit status: 0 done, 1 the run failed, 2 bad usage, 130 stopped by Ctrl-C.
"""

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Final

from awsgd_rl._version import __version__
from awsgd_rl.cli_common import PROGRAM, UsageError, one_line
from awsgd_rl.validation import require_name

COMMANDS: Final = {
    "train": "one agent on one environment",
    "evaluate": "a saved agent: return, length and success with 95 % intervals",
    "compare": "agents side by side (with no arguments: the main job)",
    "bench": "a figure or table of the README, made again",
    "tune": "step sizes and the like, on seeds that are not reported",
    "report": "a page of figures from one or more run folders",
    "list": "environments, presets, algorithms and benches",
}

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: The arguments; those of the process when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _one_line_warnings():
        return _run(arguments[0] if arguments else "--help", arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    program = PROGRAM
    try:
        if name in ("-h", "--help", "help", "--version"):
            print(f"{PROGRAM} {__version__}" if name == "--version" else _help(), flush=True)
            return DONE
        try:
            require_name("command", name, COMMANDS)
        except ValueError as error:
            raise UsageError(error) from None
        program = f"{PROGRAM} {name}"
        importlib.import_module(f"awsgd_rl.cli_{name}").main(arguments)
    except SystemExit as stop:  # after --help
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt as stop:
        _say(program, f"stopped{': ' if str(stop) else ''}{stop}")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if isinstance(error, UsageError):
            _say(program, f"error: {error}")
            return BAD_USAGE
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        _say(program, f"the run failed: {kind}{error} (--debug shows where)")
        return FAILED
    return DONE


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [OPTIONS]",
            "",
            "Adaptive importance sampling for policy gradients: learn, compare, measure.",
            "",
            "commands:",
            *lines,
            "",
            "examples:",
            f"  {PROGRAM} compare",
            f"  {PROGRAM} train --algo awsgd --env CartPole-v1 --total-timesteps 100000",
            f"  {PROGRAM} evaluate runs/train-20260101-120000 --episodes 1000",
            f"  {PROGRAM} list",
            "",
            f"`{PROGRAM} COMMAND --help` shows a command's options, their units and defaults.",
            "Exit status: 0 done, 1 the run failed, 2 bad usage, 130 stopped by Ctrl-C.",
        ]
    )


def _say(program: str, message: str) -> None:
    print(f"{program}: {one_line(message)}", file=sys.stderr)


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print each warning as one line, without the source line that Python shows."""

    def show(message: object, *_: object, **__: object) -> None:
        _say(PROGRAM, f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


if __name__ == "__main__":
    sys.exit(main())
