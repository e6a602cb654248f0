"""Docstrings of the product: each says what the thing is, subject first; and what a function raises itself.

Held are functions, classes and methods without an underscore, and constructors, whose class may say what they raise.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_imports import modules

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# First words that leave the subject to be guessed.
RIDDLES = re.compile(r"(The same|So many|As many|What|Whoever|Those|That|Of|Where|How|In which|From which|By which)\b")
SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:")


def definitions(node: ast.Module | ast.ClassDef) -> Iterator[tuple[Definition, ast.Module | ast.ClassDef]]:
    """Functions, classes and methods, with what they stand in; not those within functions."""
    for child in node.body:
        if isinstance(child, Definition):
            yield child, node
        if isinstance(child, ast.ClassDef):
            yield from definitions(child)


def raises(function: ast.AST) -> bool:
    """Whether a function raises in its own body, not by a bare `raise` and not in functions within it."""
    children = [c for c in ast.iter_child_nodes(function) if not isinstance(c, Definition | ast.Lambda)]
    return any((isinstance(c, ast.Raise) and c.exc is not None) or raises(c) for c in children)


def faults(path: Path) -> Iterator[str]:
    """Lines of a module's definitions whose docstrings leave something to be guessed."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    if RIDDLES.match(ast.get_docstring(module) or ""):
        yield f"{path.name}:1 {path.stem} begins with a riddle"
    for node, parent in definitions(module):
        place, text = f"{path.name}:{node.lineno} {node.name}", ast.get_docstring(node) or ""
        if not node.name.startswith("_"):
            if not text or text.startswith(SECTIONS):
                yield f"{place} says not what it is"
            elif RIDDLES.match(text):
                yield f"{place} begins with {text.partition(' ')[0]!r}"
        if isinstance(node, ast.ClassDef) or node.name == "__post_init__" or not raises(node):
            continue
        if node.name.startswith("__") and isinstance(parent, ast.ClassDef):  # the class's docstring will do
            text += "\n" + (ast.get_docstring(parent) or "")
        elif node.name.startswith("_"):
            continue
        if not re.search(r"^Raises:$", text, re.MULTILINE):
            yield f"{place} says not what it raises"


PRODUCT = modules(ROOT)


@pytest.mark.parametrize("package", sorted({name.partition(".")[0] for name in PRODUCT}))
def test_docstrings_have_a_subject_and_say_what_is_raised(package):
    paths = [path for name, path in PRODUCT.items() if name.partition(".")[0] == package]
    assert [fault for path in paths for fault in faults(path)] == []
