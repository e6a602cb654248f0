"""Mistakes in a user's arguments and files, and how a program ends then: with one line and an exit code."""

import io
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress


class UsageError(Exception):
    """The error of an argument, or a combination of arguments, that cannot be carried out. Exit code 2."""


class DataError(Exception):
    """The error of a file or folder that is missing or is not what it should be. Exit code 1."""


# Callbacks that `run_program` runs on every way out, after the line is printed. They must not wait: other processes may
# hang.
leaving = ExitStack()

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
format_warning = warnings.formatwarning

# Words of gloo and NCCL when a process they talk to is gone.
LOST_PROCESS = ("by peer", "gloo/transport", "remote worker", "ncclRemoteError", "ncclSystemError")
# Words of torch where data workers cannot hand on their batches, and advice that helps.
SHARED_MEMORY = ("</torch_", "shared memory object", "shared memory(shm)", "shared memory (shm)", "insufficient shared")
OPEN_FILES = ("Too many open files", "items of ancdata")
MORE_SHARED_MEMORY = "enlarge /dev/shm (docker run --shm-size=8g), or lower --num-workers"
MORE_OPEN_FILES = "raise `ulimit -n`, or lower --num-workers"
# Variables that tell one process of a machine from the others, also before `distributed.setup`.
LOCAL_RANKS = (
    *("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    *("MPI_LOCALRANKID", "SLURM_LOCALID"),
)
# Words of CUDA when the fault is the machine's. Other faults, an illegal address for instance, are a program's.
DEVICE = ("no kernel image", "driver version", "driver on your system", "busy or unavailable", "ECC error", "NVLink")
# Arguments that need less memory, for each program.
LESS_MEMORY = {
    "train.py": "a larger --grad-accum, --grad-checkpointing 1, --precision bf16 or a smaller --global-batch-size",
    "sample_ddp.py": "a smaller --per-proc-batch-size",
    **dict.fromkeys(("sample.py", "evaluate.py", "extract_latents.py"), "a smaller --batch-size"),
}


def first_line(error: BaseException) -> str:
    """The first line of a library's error."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def own_words(error: BaseException) -> str:
    """An error's own text, without the traceback that is wrapped around it when a data worker has raised it."""
    text = str(error).strip()
    if "\nOriginal Traceback " not in text:
        return text
    kind = type(error)
    named = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if (said := text.rpartition(f"\n{named}: ")[2]) != text:
        return said
    name, _, said = re.split(r"\n(?=[A-Za-z_][\w.]*(?::|$))", text)[-1].partition(":")
    return said.strip() or name


def reason(error: BaseException) -> str:
    """The cause that a library's error tells, in one line."""
    text = own_words(error) or type(error).__name__
    text = text.rpartition("\nLast error:\n")[2].strip() or text  # NCCL's, after what it always says
    return re.sub(r"^\[[^\]]*\] ", "", text.splitlines()[0])  # gloo's file and line


def explain(error: BaseException, program: str) -> str:
    """One line for an error that is neither the program's nor its arguments' fault; "" for others."""
    text, said = own_words(error), reason(error)
    if any(words in text for words in OPEN_FILES):
        return f"too many open files, {MORE_OPEN_FILES}"
    if any(words in text for words in SHARED_MEMORY):
        return f"the data workers' shared memory is full: {said} ({MORE_SHARED_MEMORY})"
    if text.startswith("DataLoader worker"):
        return f"{said} (was there too little memory?)"
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        short = " ".join(re.split(r"(?<=\.) (?=[A-Z])", said)[:3])  # advice on the allocator follows
        return f"{short} (less is needed by {LESS_MEMORY.get(program, 'smaller batches')})"
    if any(words in text for words in DEVICE):
        return said
    if any(words in text for words in LOST_PROCESS):
        return f"another process has failed, or does not answer: {said.partition('. This is typically')[0]}"  # gloo's
    return ""


def begin() -> None:
    """Make Ctrl-C end in one line while a program imports torch, which takes seconds; `run_program` follows."""
    open_streams()
    # Not where it is ignored, as under nohup.
    if in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


def open_streams() -> None:
    """Open the standard streams that a process lacks, closed (2>&-) or absent (pythonw), so that they lead nowhere.

    The next file that is opened would take a closed one's number, and what a library in C prints would go into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest number that is free
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, access in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, access))  # noqa: SIM115 -- as long as the process


def in_main_thread() -> bool:
    """Whether signals may be given handlers here."""
    return threading.current_thread() is threading.main_thread()


def end_at_once(*_: object) -> None:
    """Handle Ctrl-C while a program imports: an exception could end up in the midst of a library."""
    os._exit(report(os.path.basename(sys.argv[0]), "interrupted", 130))


def run_program(main: Callable[[], None]) -> None:
    """Run a program's main; a user's mistake ends it with one line instead of a traceback."""
    name = os.path.basename(sys.argv[0])
    open_streams()
    warnings.formatwarning = in_a_line
    if in_main_thread() and signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.closed and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have any bytes
    with leaving:
        try:
            main()
        except UsageError as error:
            sys.exit(report(name, str(error), 2))
        except DataError as error:
            sys.exit(report(name, own_words(error), 1))
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else own_words(error)
            sys.exit(report(name, what, 1))
        except FloatingPointError as error:  # what was computed is not finite
            sys.exit(report(name, own_words(error), 1))
        except (RuntimeError, MemoryError) as error:
            if not (line := explain(error, name)):
                raise
            sys.exit(report(name, line, 1))
        except KeyboardInterrupt:
            sys.exit(report(name, "interrupted", 130))


def in_a_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """The text of a warning: in one line for those of this project's modules, as it is for those of libraries."""
    if os.path.dirname(os.path.dirname(os.path.abspath(filename))) == ROOT:
        return f"{os.path.basename(sys.argv[0])}: warning: {message}\n"
    return format_warning(message, category, filename, lineno, line)


def report(name: str, message: str, code: int) -> int:
    """Print one line and return the exit code.

    Processes that torchrun started usually fail alike. The others wait until the first one of their machine has printed
    its line; torchrun ends them when it exits, so that only a mistake of their own is printed.
    """
    if any(os.environ.get(name, "0") != "0" for name in LOCAL_RANKS):
        time.sleep(5)
    message = message.replace("\n", "\\n")  # a file's name may have any character
    with suppress(OSError):  # the terminal may be gone
        print(f"{name}: error: {message}", file=sys.stderr, flush=True)
    return code
