"""What documents, docstrings and comments name is there: paths, links and their anchors, modules and what stands in them."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sparsevid.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sparsevid"
FOLDERS = ("configs", "datasets", "docs", "sparsevid", "tests", "tools")
DOCUMENTS = sorted(
    path for folder in (".", "configs", "datasets", "docs", "docs/tutorials") for path in (ROOT / folder).glob("*.md")
)
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted({path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")} - {Path(__file__)})
SETTINGS = [
    ROOT / "Makefile",
    *(path for place in (".ci/*", "configs/**/*.yaml", "datasets/*.yaml") for path in ROOT.glob(place)),
]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(rf"(?<![\w./~$<>-])(?:{'|'.join(FOLDERS)})/[^\s`'\"()\[\],;:|]*")
_PLACEHOLDER = re.compile(r"[<{…]|(^|/)[A-Z]+(\.|/|$)")  # tools/X.py stands for any tool
_DOTTED = re.compile(r"(?<![\w./~-])sparsevid((?:\.[A-Za-z_]\w*)+)")
_IMPORT = re.compile(r"^\s*from (sparsevid[\w.]*) import (.+)$", re.MULTILINE)
_PLACE = re.compile(r"(?<![\w./<>-])([a-z_0-9]+(?:/[a-z_0-9]+)+\.py)(?::([A-Za-z_][\w.]*))?")
_SHORT = re.compile(
    r"`(?!sparsevid\.)([a-z_]\w*(?:\.[a-z_]\w*)*)\.(\w+)[^`]*`"
)  # `read.probe`: a module of the package and what it defines

_COMMENT = re.compile(r"(?:^|  )# .*$", re.MULTILINE)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def defined(module: Path) -> dict[str, ast.AST]:
    """What a module defines or imports at its top level, by name, as far as it can be read off without running it."""
    found: dict[str, ast.AST] = {}
    for node in parsed(module).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            found |= dict.fromkeys(names, node)
            if "__all__" in names:  # some of them may be made on first use
                found |= {name: node for name in ast.literal_eval(node.value) if name not in found}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
    return found


def members(node: ast.AST) -> set[str]:
    """Methods, fields and attributes of a class."""
    attributes = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self"}
    fields = {each.target.id for each in getattr(node, "body", ()) if isinstance(each, ast.AnnAssign)}
    named = {each.name for each in getattr(node, "body", ()) if isinstance(each, ast.FunctionDef | ast.ClassDef)}
    constants = {name.id for each in getattr(node, "body", ()) if isinstance(each, ast.Assign) for name in each.targets}
    return attributes | fields | named | constants


def in_module(module: Path, names: list[str]) -> bool:
    """Whether a module has a name, or a class in it has the second one."""
    if not names:
        return True
    node = defined(module).get(names[0])
    return node is not None and (len(names) == 1 or names[1] in members(node))


def resolves(dotted: str) -> bool:
    """Whether a name below `sparsevid` is a module, a package, or something that one of them has."""
    place, names = PACKAGE, [*filter(None, dotted.split("."))]
    while names and (place / names[0]).is_dir():
        place /= names.pop(0)
    if names and (place / f"{names[0]}.py").is_file():
        return in_module(place / f"{names[0]}.py", names[1:])
    return in_module(place / "__init__.py", names)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(document: Path, text: str) -> Iterator[str]:
    for target in _LINK.findall(text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield target


def missing_paths(text: str) -> Iterator[str]:
    """Paths from the root of the repository that lead nowhere. `sparsevid/v2` may be a protocol."""
    for found in _PATH.findall(text):
        path = found.partition("#")[0].rstrip(".*")
        protocol = PACKAGE / "evaluation" / "protocols" / f"{path}.yaml"
        if not _PLACEHOLDER.search(path) and not (ROOT / path).exists() and not protocol.is_file():
            yield path


def missing_names(text: str) -> Iterator[str]:
    """Names below `sparsevid`, imports of them, and places, as `room/module.py:name` or without a name, that are not there."""
    yield from (f"sparsevid{dotted}" for dotted in _DOTTED.findall(text) if not resolves(dotted))
    for module, names in _IMPORT.findall(text):
        for name in names.split(","):
            dotted = f"{module}.{name.split(' as ')[0].strip()}"
            if not resolves(dotted.removeprefix("sparsevid")):
                yield dotted
    for file, name in _PLACE.findall(text):
        if not name and not any((base / file.split("/")[0]).is_dir() for base in (PACKAGE, ROOT)):
            continue  # a file of another project
        path = next((base / file for base in (PACKAGE, ROOT) if (base / file).is_file()), None)
        if path is None or not in_module(path, name.rstrip(".").split(".") if name else []):
            yield f"{file}:{name}" if name else file


@cache
def definers() -> dict[str, tuple[str, ...]]:
    """Name → the modules, dotted, that define it at their top level as a function, class or constant."""
    found: dict[str, tuple[str, ...]] = {}
    for module in MODULES:
        dotted = ".".join(module.relative_to(ROOT).with_suffix("").parts)
        for name, node in defined(module).items():
            if not isinstance(node, ast.Import | ast.ImportFrom):
                found[name] = (*found.get(name, ()), dotted)
    return found


def moved_names(text: str) -> Iterator[str]:
    """`module.name` where the package defines the name, and no module of this name does."""
    for module, name in _SHORT.findall(text):
        if not any(f".{place}".endswith(f".{module}") for place in definers().get(name, (module,))):
            yield f"{module}.{name}"


def scopes(node: ast.AST) -> Iterator[ast.AST]:
    """A module with all classes and functions in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for statement in getattr(node, "body", ()):
        yield from scopes(statement)


def remarks(source: Path) -> str:
    """All docstrings and comments of a file."""
    docstrings = [ast.get_docstring(node) or "" for node in scopes(parsed(source))]
    return "\n".join(docstrings + _COMMENT.findall(source.read_text(encoding="utf-8")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_names_is_there(document):
    text = document.read_text(encoding="utf-8")
    assert [*broken_links(document, text), *missing_paths(text), *missing_names(text)] == []


def test_what_docstrings_and_comments_name_is_there():
    found = {source.relative_to(ROOT).as_posix(): remarks(source) for source in SOURCES}
    assert sum(map(len, found.values())) > 100_000  # what is looked at is there
    checks = (missing_paths, missing_names, moved_names)
    wrong = {path: [name for check in checks for name in check(text)] for path, text in found.items()}
    wrong |= {path.name: [*missing_paths(path.read_text(encoding="utf-8"))] for path in SETTINGS}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_architecture_names_places_in_every_flow():
    flows = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("\n## ")[1:4]
    assert [flow.split()[0] for flow in flows] == ["Train", "Generate", "Evaluate"]
    assert all(sum(bool(name) for _, name in _PLACE.findall(flow)) >= 10 for flow in flows)


def test_every_command_is_a_module_a_tool_and_in_readmes_list():
    listed = re.search(r"one thin module a command: ([\w, ]+)", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
    assert set(COMMANDS) == {path.stem for path in (ROOT / "tools").glob("*.py")} == set(re.findall(r"\w+", listed))
    assert all((PACKAGE / "cli" / f"{name}.py").is_file() for name in COMMANDS)


def test_what_is_not_there_is_named():
    text = "See docs/none.md, `sparsevid/old.py`, tests/test_docs.py, `sparsevid/v2`, tools/X.py and $HOME/docs/x."
    assert [*missing_paths(text)] == ["docs/none.md", "sparsevid/old.py"]
    text = "sparsevid.videos.read.probe, `sparsevid.decode.probe`, sparsevid.build_spec, sparsevid.runs.config.RunConfig.seed."
    assert [*missing_names(text)] == ["sparsevid.decode.probe"]
    assert [*missing_names("    from sparsevid.videos.read import probe, prob")] == ["sparsevid.videos.read.prob"]
    text = "training/ema.py:EMA.update → `training/ema.py:EMA.sing`, `video/read.py:probe`, tests/launch.py:x, `data/decode.py`"
    assert [*missing_names(text)] == ["training/ema.py:EMA.sing", "video/read.py:probe", "tests/launch.py:x", "data/decode.py"]
    assert [*moved_names("see `decode.probe`, `read.probe(x)`, `videos.read.probe`, `video.frames`")] == ["decode.probe"]
    text = "[a](README.md#data) [b](README.md#no-such-heading) [c](https://x.org/y) [d](docs/none.md) [e](#licence)"
    assert [*broken_links(ROOT / "README.md", text)] == ["README.md#no-such-heading", "docs/none.md", "#licence"]
