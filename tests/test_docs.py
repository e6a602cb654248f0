"""README and docs/ are true: their links lead somewhere, and the programs accept their commands."""

import argparse
import importlib
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from tests.conftest import ROOT
from tests.docs_check import (
    CANNOT_RUN,
    RUNS,
    Block,
    Command,
    all_commands,
    as_run,
    blocks,
    commands,
    entries,
    pages,
    python_blocks,
    simple_commands,
)

README = ROOT / "README.md"
MAX_LINES = 250
LONG = 60  # characters of a sentence that may not stand twice
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


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert not broken_links(page)


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` & c-d\n## Two\n## Two\n[1](page.md) [2](#a-b--c-d) [3](#two-1) [4](https://a.b/c) `[5](no)`\n"
        "[6](no.md) ![7](no.png) [8](#two-2) [9](page.md#A) [10](../x)\n```\n[11](no)\n# No\n```\n[12](#no)\n"
    )
    assert broken_links(page) == ["no.md", "no.png", "#two-2", "page.md#A", "../x", "#no"]


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


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_what_the_tree_names_is_there():
    assert not [str(path) for path in tree() if not (ROOT / path).exists()]


def test_the_tree_names_every_program_and_every_package():
    there = {path.relative_to(ROOT) for path in ROOT.glob("*.py")}
    there |= {path.parent.relative_to(ROOT) for path in ROOT.glob("*/__init__.py")}
    assert not {str(path) for path in there - tree()}


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_in_the_prose_are_there(page):
    named = re.findall(r"`(\w[\w/]*\.(?:py|sh))`", without_code(page))
    bare = {path.name for path in tree()}  # `path.py` is said where it is clear of which package
    assert not [path for path in named if path not in bare and not (ROOT / path).is_file()]


def sentences(page: Path) -> list[str]:
    """Long ones, and long rows of tables."""
    found = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-|>#]|\d+\.) ?)", without_code(page)):
        parts = [paragraph] if paragraph.startswith("|") else re.split(r"(?<=[.:;!?])\s+", paragraph)
        found += [text for part in parts if len(text := " ".join(part.split()).lstrip("-|*# ")) > LONG]
    return [text for text in found if re.search("[a-z]", text)]


def test_no_sentence_stands_twice():
    counted = Counter(sentence for page in PROSE for sentence in sentences(page))
    assert len(counted) > 200
    assert not [sentence for sentence, times in counted.items() if times > 1]


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
            parse("train.py", ["--data-path", parsed.data_path, *further], monkeypatch)
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


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))


def test_there_are_commands():
    assert len(COMMANDS) > 25
    assert {"README.md", "training.md", "sampling.md", "study.md"} <= {command.page.name for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_the_programs_accept_the_commands(command, monkeypatch, capsys):
    for words in simple_commands(command.text):
        assert not problem(words, monkeypatch, capsys)


@pytest.mark.parametrize(
    "command, said",
    [
        ("python sample.py ODE --sede 1", "--sede"),
        ("python sample.py SDE --last-step Meen", "Meen"),
        ("python sampel.py ODE", "sampel.py does not exist"),
        ("RANK=0 srun torchrun --nproc_per_rank=8 train.py --data-path x", "nproc_per_rank"),
        ("torchrun --nproc_per_node=8 train.py --data-path x --lerning-rate 1", "--lerning-rate"),
        ("python train.py --lr 1", "--data-path"),
        ("python experiments/ablation.py --out x -- --no-flop", "--no-flop"),
        ("python benchmarks/throughput.py trian", "trian"),
        ("python experiments/fashion_mnist.py", "--out"),
        ("ls --nothing", ""),
        ("python -m tests.hostile", ""),
        ("python train.py --data-path x", ""),
    ],
)
def test_a_mistake_in_a_command_is_found(command, said, monkeypatch, capsys):
    (words,) = simple_commands(command)
    found = problem(words, monkeypatch, capsys)
    assert said in found and bool(said) == bool(found)


def test_the_reader_knows_shell():
    text = 'A=a.pt\nlong="--x 1 --y"  # options\npython p.py $A \\\n    ${long} 2   # why\nexport B=1 C=2\n\n# no\n'
    text += "make a && make b-c   # two\necho $HOME\n"
    found = list(commands(Block(README, 10, "bash", text)))
    assert [c.text for c in found] == ["python p.py a.pt --x 1 --y 2", "make a && make b-c", "echo $HOME"]
    assert [c.line for c in found] == [12, 17, 18]
    assert list(simple_commands(found[1].text)) == [["make", "a"], ["make", "b-c"]]
    (script,) = commands(Block(README, 1, "bash", "#!/bin/bash\na=$(b | c)\nsrun d \\\n --e\n"))
    assert ["srun", "d", "--e"] in list(simple_commands(script.text))


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


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_python_blocks_compile(page):
    for block in blocks(page):
        assert block.language in ("", "bash", "python")
        if block.language == "python":
            compile(block.text, f"{page.name}:{block.line}", "exec")


def test_python_blocks_have_what_they_use():
    program = python_blocks()
    compile(program, "docs", "exec")
    assert program.index("create_transport") < program.index("sample_graded")


# ---- make docs-check -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_every_command_runs_or_has_a_reason(command):
    """A new command goes into one of the tables of docs_check.py."""
    assert len(entries(command)) == 1


def test_no_entry_is_left_over():
    assert {entry for command in COMMANDS for entry in entries(command)} == {*RUNS, *CANNOT_RUN}


def test_stand_ins_are_whole_words():
    command = Command(README, 1, "python x.py --ckpt FILE --reference a.png data/a.png PROFILE samples/NAME.npz")
    assert as_run(command, "--more") == (
        "python x.py --ckpt results/ComboStoc-XS-2-demo/ckpt.pt --reference pictures/0.png data/a.png PROFILE "
        "samples/*.npz --more"
    )
