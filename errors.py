"""What goes wrong by the user's hand or in the user's files, and how a program ends then: one line and an exit code."""

import os
import sys
import time
from collections.abc import Callable


class UsageError(Exception):
    """An argument, or a combination of arguments, that cannot be carried out. Exit code 2."""


class DataError(Exception):
    """A file or folder that is missing or is not what it should be. Exit code 1."""


# What gloo and NCCL say when a process they talk to is gone.
LOST_PROCESS = ("by peer", "gloo/transport", "remote worker", "ncclRemoteError", "ncclSystemError")


def first_line(error: Exception) -> str:
    """What a library's error says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def run_program(main: Callable[[], None]) -> None:
    """Run a program's main; end on a user's mistake with one line instead of a traceback."""
    name = os.path.basename(sys.argv[0])
    try:
        main()
    except UsageError as error:
        sys.exit(report(name, str(error), 2))
    except DataError as error:
        # A data-loading worker wraps the message in its traceback; the last line is ours.
        message = str(error).strip()
        sys.exit(report(name, message.rpartition("\nerrors.DataError: ")[2], 1))
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        sys.exit(report(name, what, 1))
    except RuntimeError as error:
        text = str(error)
        if any(words in text for words in LOST_PROCESS):
            sys.exit(report(name, "another process has failed, or does not answer", 1))
        if text.startswith("DataLoader worker"):
            sys.exit(report(name, f"{first_line(error)} (was there too little memory?)", 1))
        raise
    except KeyboardInterrupt:
        sys.exit(report(name, "interrupted", 130))


def report(name: str, message: str, code: int) -> int:
    """Print one line and return the exit code.

    Processes that torchrun started usually fail alike. The others wait for the first one of their machine to speak;
    torchrun ends them when it exits, so that only a mistake of their own is heard.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)
    message = message.replace("\n", "\\n")  # a file's name may have any character
    print(f"{name}: error: {message}", file=sys.stderr, flush=True)
    return code
