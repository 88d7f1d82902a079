"""How every script ends: 0 done, 2 the user's input is wrong (one `error:` line), 1 anything else."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn


class InputError(ValueError):
    """The user's input is wrong. The message is one line: what, the value, the rule, the remedy."""


def reason_of(error: BaseException) -> str:
    """Kind and first line of an error's message, at most 300 characters, for the brackets of an InputError."""
    lines = str(error).strip().split("\n")
    return (f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__)[:300]


def _end(message: str, code: int) -> NoReturn:
    if "--debug" in sys.argv[1:]:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a script's `main(arguments)` and turns InputError, and what the system says of a file, into exit code 2.

    `--debug` shows the traceback.
    """
    arguments = sys.argv[1:]
    try:
        main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush at exit goes nowhere
        sys.exit(128 + signal.SIGPIPE)
    except InputError as error:
        _end(str(error), 2)
    except OSError as error:  # names too long, folders that may not be read, a full disk
        named = error.filename is not None
        _end(f"{error.filename!r}: {error.strerror}" if named else str(error), 2 if named else 1)
    except KeyboardInterrupt:
        print("interrupted; rerun the same command to continue", file=sys.stderr)
        sys.exit(130)
