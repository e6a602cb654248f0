"""README and docs/ are true: their links lead somewhere, and the programs accept their commands."""

import argparse
import ast
import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

import kinds
from runtime.errors import UsageError
from tests.conftest import ROOT
from tests.docs_check import (
    CANNOT_RUN,
    RUNS,
    Command,
    all_commands,
    blocks,
    commands,
    entries,
    pages,
    python_blocks,
    simple_commands,
)
from training.arguments import resolve_arguments

README = ROOT / "README.md"
OTHERS = [ROOT / "CONTRIBUTING.md", *(ROOT / "benchmarks").rglob("README.md")]
PROSE = [page for page in (*pages(), *OTHERS) if page.is_file()]


def name(value: object) -> str:
    return value.place if isinstance(value, Command) else str(value)


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


# ---- links ---------------------------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    """Targets within the repository."""
    text = re.sub(r"`(?:[^`\n]|\n(?!\n))*`", "", without_code(page))
    found = re.findall(r"\]\(([^()\s]+)\)", text)
    return [link for link in found if not re.match(r"\w+:", link)]


def anchors(page: Path) -> set[str]:
    """Of the headings, by GitHub's rules."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", without_code(page), re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        numbered = (f"{slug}-{k}" for k in itertools.count(1))
        found.add(slug if slug not in found else next(s for s in numbered if s not in found))
    return found


def target(page: Path, link: str) -> tuple[Path, str]:
    path, _, anchor = link.partition("#")
    return (page.parent / path).resolve() if path else page, anchor


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links(page):
        path, anchor = target(page, link)
        inside = path.is_relative_to(ROOT) and path.exists()
        if not inside or (anchor and anchor not in anchors(path)):
            broken.append(link)
    return broken


def test_every_link_leads_somewhere():
    assert not [(page.name, link) for page in PROSE for link in broken_links(page)]


def test_every_page_is_reached_from_readme():
    reached, todo = set(), [README]
    while todo:
        if (page := todo.pop()) not in reached:
            reached.add(page)
            todo += [
                path
                for path, _ in (target(page, link) for link in links(page))
                if path.suffix == ".md" and path.is_file()
            ]
    assert not {page.name for page in (ROOT / "docs").rglob("*.md") if page not in reached}


# ---- what README shows ---------------------------------------------------------------------------------------------


def tree() -> set[Path]:
    """What the tree in README names."""
    (block,) = [b for b in blocks(README) if not b.language and "sample_ddp.py" in b.text]
    found, package = set(), Path()
    for line in block.text.splitlines():
        package = package if line.startswith(" ") else Path()  # an indented line goes on with the one before
        for word in re.findall(r"(?<!\S)(\w+\.py|\w+/)(?!\S)", line):
            if word.endswith("/"):
                package = Path(word)
                found.add(package)
            else:
                found.add(package / word)
    return found


def test_what_the_tree_names_is_there():
    assert not [str(path) for path in tree() if not (ROOT / path).exists()]


def test_the_tree_names_every_program_and_every_package():
    there = {path.relative_to(ROOT) for path in ROOT.glob("*.py")}
    there |= {path.parent.relative_to(ROOT) for path in ROOT.glob("*/__init__.py")}
    assert not {str(path) for path in there - tree()}


def test_modules_in_the_prose_are_there():
    bare = {path.name for path in tree()}  # `path.py` is said where it is clear of which package
    for page in PROSE:
        named = re.findall(r"`(\w[\w/]*\.(?:py|sh))`", without_code(page))
        assert not [path for path in named if path not in bare and not (ROOT / path).is_file()], page


# ---- commands ------------------------------------------------------------------------------------------------------

COMMANDS = all_commands()


class ParsedError(Exception):
    """Raised in place of what a program does once its command line has been read."""


def problem(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the program's own parser says against a command; "" for one that is accepted, or is none of our programs."""
    words = list(itertools.dropwhile(lambda word: word == "srun" or "=" in word, words))
    if not words or words[0] not in ("python", "torchrun") or words[1:2] == ["-m"]:
        return ""
    capsys.readouterr()
    try:
        if words[0] == "torchrun":
            launcher = get_args_parser().parse_args(words[1:])
            program, argv = launcher.training_script, launcher.training_script_args
        else:
            program, argv = words[1], words[2:]
        if not (ROOT / program).is_file():
            return f"{program} does not exist"
        parsed = parse(program, argv, monkeypatch)
        if further := getattr(parsed, "train_args", None):
            parse("train.py", ["--data-path", parsed.data_path, *further], monkeypatch)  # the model is the study's
        if program == "train.py":
            resolve_arguments(parsed, 1, kinds.of_data(parsed.data_path))
    except UsageError as error:
        return str(error)
    except SystemExit as ended:
        return str(ended) if isinstance(ended.code, str) else capsys.readouterr().err or f"exit {ended.code}"
    return ""


def parse(program: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a program reads from its command line; it ends there."""
    real = argparse.ArgumentParser.parse_args

    def parse_and_end(*args: object, **kwargs: object) -> None:
        raise ParsedError(real(*args, **kwargs))

    module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
    with monkeypatch.context() as patched, pytest.raises(ParsedError) as ended:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
        module.main(argv)
    return ended.value.args[0]


def test_the_programs_accept_the_examples_of_their_own_help(monkeypatch, capsys):
    tried = 0
    for program in sorted(ROOT.glob("*.py")):
        text = ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))) or ""
        for example in re.findall(r"^    ((?:python|torchrun) (?:.*\\\n)*.*)", text, re.MULTILINE):
            for words in simple_commands(example):
                assert not problem(words, monkeypatch, capsys), example
                tried += 1
    assert tried > 15


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_the_programs_accept_the_commands(command, monkeypatch, capsys):
    for words in simple_commands(command.text):
        assert not problem(words, monkeypatch, capsys)


def test_make_has_the_targets():
    targets = make_targets((ROOT / "Makefile").read_text())
    assert "demo" in targets and "PYTHON" not in targets
    shell = [c for page in PROSE for block in blocks(page) if block.language == "bash" for c in commands(block)]
    named = {words[1] for c in shell for words in simple_commands(c.text) if words[:1] == ["make"]}
    for page in PROSE:
        named |= set(re.findall(r"`make\s+([a-z][\w-]*)[^`]*`", without_code(page)))
    assert {"test", "docs-check"} <= named and not named - targets


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    (declared,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    listed = re.findall(r"^# make ([\w-]+) ", makefile, re.MULTILINE)
    assert sorted(listed) == sorted({*declared.split()} - {"smoke-steps"})  # a part of smoke


def test_pre_commit_has_the_ruff_that_make_test_has():
    named = re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    assert named and {*named} == {*re.findall(r"^ruff==[\d.]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)}


def test_python_blocks_compile():
    for page in pages():
        for block in blocks(page):
            assert block.language in ("", "bash", "python")
            if block.language == "python":
                compile(block.text, f"{page.name}:{block.line}", "exec")


def test_a_checkpoint_becomes_pictures_as_library_says(random_checkpoint, tmp_path, monkeypatch):
    found = [block.text for block in blocks(ROOT / "docs" / "library.md") if "network" in block.text]
    program = "\n".join(found).replace('"FILE"', repr(str(random_checkpoint)))
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(compile(program, "library.md", "exec"), made)
    assert Image.open("three.png").size > (3 * 64, 64)
    assert made["pictures"].shape == (3, 3, 8, 8) and made["pictures"].isfinite().all()
    assert made["latents"].shape == (3, 3, 8, 8) and made["evaluations"] > 0


def test_python_blocks_have_what_they_use():
    program = python_blocks()
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select", "F821", "-"]  # undefined names
    checked = subprocess.run(ruff, input=program, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert program.index("create_transport") < program.index("sample_graded")


# ---- make docs-check -----------------------------------------------------------------------------------------------


def test_every_command_runs_or_has_a_reason():
    """A new command goes into one of the tables of docs_check.py, and its entry leaves with it."""
    found = {command.place: entries(command) for command in COMMANDS}
    assert not [place for place, named in found.items() if len(named) != 1]
    assert {entry for named in found.values() for entry in named} == {*RUNS, *CANNOT_RUN}
