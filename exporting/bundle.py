"""Modules of this code as one file that runs without the others."""

import ast
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType


def bundle(first_line: str, modules: Collection[ModuleType], instead: Collection[str] = ()) -> str:
    """The text of modules one after the other, without their imports of each other.

    Args:
        first_line: the file's docstring.
        modules: the modules, each after those that it imports.
        instead: names of other modules whose imports are left out, too, because one of `modules` defines their names.

    Raises:
        ValueError: two modules have a name in common.
    """
    inside = {module.__name__ for module in modules} | set(instead)
    parts, owner = [f'"""{first_line}"""\n'], dict[str, str]()
    for module in modules:
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        lines, tree = text.splitlines(), ast.parse(text)
        for name in names(tree):
            if owner.setdefault(name, module.__name__) != module.__name__:
                raise ValueError(f"{owner[name]} and {module.__name__} both have {name}")
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and origin(node, module) in inside:
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)  # type: ignore[operator]
        parts.append(f"# ---- {module.__name__} ".ljust(120, "-") + "\n\n" + "\n".join(lines).strip() + "\n")
    return "\n\n".join(parts)


def names(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def origin(node: ast.ImportFrom, module: ModuleType) -> str:
    """The name of the module that a statement imports from."""
    package = module.__name__.rpartition(".")[0]
    return f"{package}.{node.module}" if node.level else str(node.module)
