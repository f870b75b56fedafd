"""Imports point down the list of rooms, never up, and README shows the same list."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from subprocess import run

import pytest

ROOT = Path(__file__).parents[1]
# Top to bottom. A room inside another, such as data/tree, stands where it may be imported from.
ROOMS = (
    "tools", "cli", "search", "study", "benchmark", "training", "evaluation", "generation", "data", "runs", "savings",
    "diffusion", "models", "data/tree", "videos", "sparsity", "autoencoder", "text", "system",
)  # fmt: skip
FILES = sorted([*ROOT.glob("sparsevid/**/*.py"), *ROOT.glob("tools/*.py")])
MOST_MODULES = 17  # of a folder
OWN_COUNT = ("cli",)  # a command is a module


def room_of(path: str) -> str:
    """The room of a module or of a name in one, by its path below `sparsevid/`: the innermost one."""
    return max((room for room in ROOMS if path.startswith(f"{room}/") or path == room), key=len, default="")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and path below `sparsevid/` of all that a file imports of the package, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno} imports relatively"
            assert all(name.name != "*" for name in node.names), f"{file}:{node.lineno} imports everything"
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        for name in names:
            if name.startswith("sparsevid.") and name != "sparsevid.__version__":
                yield node.lineno, name.removeprefix("sparsevid.").replace(".", "/")


def place(file: Path) -> str:
    """A file's path as that of what is imported: below `sparsevid/`, tools in a room of their own."""
    base = ROOT if file.is_relative_to(ROOT / "tools") else ROOT / "sparsevid"
    return file.relative_to(base).with_suffix("").as_posix()


def upward(files: dict[str, list[tuple[int, str]]]) -> list[str]:
    """Imports that point up, both files named."""
    order = {room: number for number, room in enumerate(ROOMS)}
    return [
        f"{path}.py, line {line}, imports {imported}: {room_of(path)} stands below {room_of(imported)}"
        for path, found in files.items()
        for line, imported in found
        if order[room_of(path)] > order[room_of(imported)]
    ]


def test_imports_point_down():
    found = {place(file): list(imports(file)) for file in FILES if file != ROOT / "sparsevid" / "__init__.py"}
    assert sum(map(len, found.values())) > 500  # what is looked at is there
    assert upward(found) == []


def test_an_import_that_points_up_is_named_with_both_files():
    (text,) = upward({"models/blocks": [(3, "sparsity/grid/Grid"), (4, "training/engine/Engine")]})
    assert text == "models/blocks.py, line 4, imports training/engine/Engine: models stands below training"
    assert len(upward({"data/tree/walk": [(1, "runs/config"), (2, "data/clips"), (3, "videos/read")]})) == 2


def test_every_module_is_in_a_room():
    assert [place(file) for file in FILES if not room_of(place(file)) and place(file) != "__init__"] == []


def test_every_folder_of_modules_is_a_package_that_git_keeps():
    """Packaging finds packages only, and git passes over what it is told to ignore by name."""
    assert [place(file) for file in FILES if file.parent.name != "tools" and not (file.parent / "__init__.py").is_file()] == []
    if which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git, or no checkout")
    paths = [file.relative_to(ROOT).as_posix() for file in FILES]
    command = ["git", "check-ignore", "--no-index", *paths]
    assert run(command, cwd=ROOT, capture_output=True, text=True).stdout == ""


def test_no_room_is_crowded():
    folders = Counter(place(file).rpartition("/")[0] for file in FILES if file.name != "__init__.py")
    assert {path: count for path, count in folders.items() if count > MOST_MODULES and path not in OWN_COUNT} == {}


@pytest.mark.parametrize("room", ROOMS[1:])
def test_a_room_says_what_it_is_for_and_what_it_may_import(room):
    text = ast.get_docstring(ast.parse((ROOT / "sparsevid" / room / "__init__.py").read_text(encoding="utf-8")))
    *purpose, last = text.split("\n\n")
    assert purpose, room
    found = {room_of(imported) for file in FILES if room_of(place(file)) == room for _, imported in imports(file)}
    if last != "It imports any room below.":
        named = re.fullmatch(r"It imports (nothing|`.+`)\.", last.replace("\n", " "))
        assert named, f"{room}/__init__.py ends with {last!r}"
        assert set(re.findall(r"`([a-z/]+)`", named[1])) == found - {room}


def test_each_test_file_has_a_name_of_its_own():
    """Files of one name in two folders cannot be collected together; each alone they can."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_readme_shows_the_same_list():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Where things are")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| `(?:sparsevid/)?([a-z/]+)/` \|", section, re.MULTILINE)
    assert [room for room in shown if room in ROOMS] == list(ROOMS)


def imported_by(*command: str) -> set[str]:
    """The packages that a process has imported in the end."""
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); " + command[0]
    done = subprocess.run([sys.executable, "-c", code, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stderr.split("\n")[-2].split()}


def test_the_package_and_its_help_wait_for_no_large_library():
    assert not imported_by("import sparsevid") & {"torch", "numpy", "diffusers", "deepspeed"}
    assert not imported_by("from sparsevid.cli import main; main()", "--help") & {"torch", "numpy", "diffusers", "deepspeed"}


LIGHT = ("cost", "evaluate", "memory", "train", "report", "convert", "prepare_data", "make_data", "encode_latents",
         "encode_captions", "study", "demo")  # fmt: skip


def test_help_of_these_commands_waits_for_no_pytorch():
    """One process for all: what one of them imports, they all would be blamed for."""
    code = "; ".join(
        [
            "import argparse, sys",
            "from importlib import import_module",
            "from sparsevid.cli import COMMANDS, _Formatter",
            f"modules = [import_module('sparsevid.cli.' + name) for name in {LIGHT!r}]",
            "parsers = [argparse.ArgumentParser(formatter_class=_Formatter) for _ in modules]",
            "[module.add_arguments(parser) or parser.format_help() for module, parser in zip(modules, parsers)]",
        ]
    )
    assert not imported_by(code) & {"torch", "numpy", "diffusers", "deepspeed", "scipy", "av"}


def test_only_the_engine_imports_deepspeed():
    """And nothing that is imported without training imports the engine."""
    own = [place(file) for file in FILES if re.search(r"^\s*(import|from) deepspeed", file.read_text("utf-8"), re.MULTILINE)]
    assert own == ["training/engine"]
    others = [place(file) for file in FILES if not place(file).startswith(("training/", "../tools/", "tools/"))]
    modules = [path.replace("/", ".").removesuffix(".__init__") for path in others if not path.endswith("__main__")]
    code = "; ".join(f"import sparsevid.{name}" for name in modules if name != "__init__")
    assert "deepspeed" not in imported_by(code)
