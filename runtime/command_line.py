"""Command lines: parsers whose errors are one line, and types of arguments."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from runtime.errors import UsageError, report

Number = TypeVar("Number", int, float)


class Misread(UsageError):
    """The error of words that a parser does not understand."""

    def __init__(self, program: str, message: str) -> None:
        super().__init__(message)
        self.program = program


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, printed by one process."""

    def __init__(self, **kwargs: Any) -> None:
        settings: dict[str, Any] = {"formatter_class": HelpFormatter, "allow_abbrev": False}
        super().__init__(**settings | kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The parsed arguments; words that are wrong end the program with one line and exit code 2."""
        try:
            return self.understand(args, namespace)
        except Misread as error:
            sys.exit(report(error.program, f"{error} (see {error.program} --help)", 2))

    def understand(self, args: Any = None, namespace: Any = None) -> Any:
        """`parse_args` for a program that must live on, as a server.

        Raises:
            UsageError: the words are wrong.
        """
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Refuse the words.

        Raises:
            Misread: always, a UsageError with the program's name.
        """
        raise Misread(self.prog, message)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that keeps the program's docstring as it is, and shows defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, argparse.SUPPRESS) or action.nargs == 0 or "default" in text:
            return text
        return f"{text} (default: %(default)s)".strip()


class ModeParser(Parser):
    """The parser of a sub-command, which refuses words it does not know and names its own help."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The parsed arguments and [].

        Raises:
            Misread: a word is unknown.
        """
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def with_values(args: argparse.Namespace, values: Mapping[str, Any]) -> argparse.Namespace:
    """A copy of arguments in which some have other values; what was parsed stays as it is."""
    return argparse.Namespace(**{**vars(args), **values})


def folder_name(value: str) -> str:
    """The end of a folder's name as an argument; it may name a folder within (group/run), and must not lead elsewhere.

    Raises:
        argparse.ArgumentTypeError: it cannot be part of a folder's name.
    """
    parts = value.split("/")
    if not all(part.strip() for part in parts) or ".." in parts or not value.isprintable():
        raise argparse.ArgumentTypeError(f"{value!r} cannot be part of a folder's name; letters, digits, - and _ can")
    return value


def none_or_str(value: str) -> str | None:
    """A word as an argument; the word None is None."""
    return None if value == "None" else value


def finite(value: str) -> float:
    """A finite number as an argument.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        number = float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{value} is not a finite number")
    return number


def whole(value: str) -> int:
    """A whole number as an argument.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        return int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number") from None


def accepting(read: Callable[[str], Number], fits: Callable[[Number], bool], otherwise: str) -> Callable[[str], Number]:
    """The type of an argument: a number that fits.

    Args:
        read: makes the number of a word.
        otherwise: what is said of a word that does not fit, after the word.
    """

    def accept(value: str) -> Number:
        if not fits(number := read(value)):
            raise argparse.ArgumentTypeError(f"{value} {otherwise}")
        return number

    return accept


positive_int = accepting(whole, lambda n: n > 0, "is not a positive whole number")
count = accepting(whole, lambda n: n >= 0, "is negative; 0 and more is accepted")
positive_float = accepting(finite, lambda x: x > 0, "is not a positive number")
weight = accepting(finite, lambda x: x >= 0, "is not a weight: 0, or a positive number")
unit_float = accepting(finite, lambda x: 0 <= x <= 1, "is not in [0, 1]")
decay = accepting(finite, lambda x: 0 <= x < 1, "is not in [0, 1)")
