"""What `mkdocs.yml` adds to the pages of docs: the start, out of README, the files of the repository that pages link to, every
command's help, and a reference of all public names, each with a link to its source.

Links are written as they lead in the repository, and hold there. In the site they lead to the page that a file has become, so
that `mkdocs build --strict` checks them all, without a network.
"""

import argparse
import ast
import itertools
import json
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
START = "README.md"
NOTEBOOK = ".ipynb"
NO_SEARCH = "---\nsearch:\n  exclude: true\n---\n"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".cfg": "ini"}
SUMMARY = 240  # characters
PUBLIC_NOT = ("logger",)  # of a module: how it logs is its own
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=(?:#[^)\s]*)?\))")
_HEADING = re.compile(r'(<h\d id="(sparsevid\.[\w.]+)" class="doc doc-heading">.*?)(?=<a class="headerlink"|</h\d>)', re.DOTALL)

# Several errors of one line of Raises, which are shown as a tuple.
_SEVERAL = re.compile(r"(<td>\s*<code>)\(((?:<span[^>]*>|</span>|</?a[^>]*>|</?autoref[^>]*>|[\w., ])+)\)(</code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs, and the reference to the navigation."""
    of_nav = [uri.removeprefix("files/") for uri in re.findall(r"'(files/[^']+)'", str(config.nav))]
    start = [START, *of_nav, *(file.src_uri.join(("docs/", "")) for file in files.documentation_pages())]
    pages = {uri_of(path): text_of(path) for path in {*linked(start), *modules()} if not path.startswith("docs/")}
    pages |= {"reference/commands.md": commands(), "reference/index.md": front()}
    pages |= {uri: reference(module) for module, uri in reference_pages().items()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    config.nav += [{"Commands": "reference/commands.md"}, {"Python": ["reference/index.md", *sections()]}]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their pages. What a page is about is told to browsers and to the search,
    which shows guides before the reference.
    """
    path = path_of(page.file.src_uri)
    module = {uri: path for path, uri in reference_pages().items()}.get(page.file.src_uri)
    said = ast.get_docstring(modules()[module]) if module else markdown
    if (about := summary(said or "")) and "linenums" not in markdown:
        page.meta["description"] = about
    if module:
        page.meta["title"] = dotted(module)  # `options` is the name of several
    elif path:
        page.meta["search"] = {"boost": 0.5 if path == "CHANGELOG.md" else 2}
    if path is None:
        return markdown
    here = posixpath.dirname(page.file.src_uri)

    def followed(link: re.Match) -> str:
        target = target_of(path, link[0])
        return posixpath.relpath(uri_of(target), here or ".") if target else link[0]

    return _LINK.sub(followed, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put a link to its source beside each name of the reference."""
    if not page.file.src_uri.startswith("reference/"):
        return html

    def sourced(heading: re.Match) -> str:
        if heading[2] not in lines():
            return heading[0]
        path, line = lines()[heading[2]]
        place = posixpath.relpath(f"{uri_of(path).removesuffix('.md')}.html", posixpath.dirname(page.file.src_uri))
        return f'{heading[1]}<a class="source" data-search-exclude href="{place}#line-0-{line}">source</a>'

    return _SEVERAL.sub(r"\1\2\3", _HEADING.sub(sourced, html))


def summary(text: str) -> str:
    """The first paragraph of a page or docstring as plain text: whole sentences, as many as a line of a search has room for."""
    first = next((part for part in text.split("\n\n") if part[:1].isalnum()), "")
    plain = " ".join(re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", first).split())
    sentences = re.split(r"(?<=[.:]) (?=[A-Z])", plain)
    ends = itertools.accumulate(len(sentence) + 1 for sentence in sentences)
    return " ".join(sentences[: max(1, sum(end <= SUMMARY for end in ends))])


class Fields(griffe.Extension):
    """What a class says of its fields in comments, behind them or above, is their documentation. Attributes that a method sets
    and that nothing says anything of are left out.
    """

    def on_module(self, *, mod: griffe.Module, **_) -> None:
        """Names that are assigned together, as `A, B = 1, 2`, which griffe passes over."""
        path = f"{mod.path.replace('.', '/')}{'/__init__' if mod.is_init_module else ''}.py"
        for name, node in names(modules()[path].body) if path in modules() else ():
            if name not in mod.members and not name.startswith("_"):
                mod.set_member(name, griffe.Attribute(name, lineno=node.lineno, endlineno=node.end_lineno))

    def on_class(self, *, cls: griffe.Class, **_) -> None:
        for name, attribute in [*cls.attributes.items()]:
            if attribute.is_alias or attribute.docstring or name.startswith("_"):
                continue
            if said := self.comment(attribute.lines_collection[attribute.filepath], attribute.lineno, attribute.endlineno):
                attribute.docstring = griffe.Docstring(said, parent=attribute)
            elif f"{cls.path}.{name}" not in lines():
                cls.del_member(name)

    @staticmethod
    def comment(source: list[str], first: int, last: int) -> str:
        """The comment behind the last line of a statement, or that on the lines above its first."""
        behind = re.search(r"  # (.*)$", source[last - 1])
        above = itertools.takewhile(lambda line: line.lstrip().startswith("# "), reversed(source[: first - 1]))
        return behind[1] if behind else " ".join(line.strip()[2:] for line in reversed([*above]))


def target_of(path: str, link: str) -> str | None:
    """The file of the repository that a link in another one means, None for addresses and what is no file."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return target if ":" not in link and not target.startswith("..") and (ROOT / target).is_file() else None


def uri_of(path: str) -> str:
    """Where in the site a file of the repository stands; one that is no page, as a listing of its lines."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return "index.md" if path == START else f"files/{path}" if path.endswith(".md") else f"files/{path}.md"


def path_of(uri: str) -> str | None:
    """The document of the repository that a page is, None for listings and pages of the reference."""
    path = START if uri == "index.md" else uri.removeprefix("files/") if uri.startswith("files/") else f"docs/{uri}"
    path = path.removesuffix(".md") if path.endswith(f"{NOTEBOOK}.md") else path
    return path if (ROOT / path).is_file() else None


def text_of(path: str) -> str:
    """What a file's page says: Markdown itself, a notebook's cells, of others their lines."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    if path.endswith(NOTEBOOK):
        cells = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in json.loads(text)["cells"]]
        return "\n\n".join(f"```python\n{source}\n```" if is_code else source for source, is_code in cells)
    return f'{NO_SEARCH}# {path}\n\n``````{{ .{LANGUAGES.get(Path(path).suffix, "text")} linenums="1" }}\n{text}``````\n'


def linked(start: list[str]) -> set[str]:
    """Files of the repository that are linked to, on pages or on those that they lead to, and these."""
    found, ahead = set(), [*start]
    while ahead:
        path = ahead.pop()
        if path not in found and (ROOT / path).is_file():
            found.add(path)
            text = text_of(path) if path.endswith((".md", NOTEBOOK)) else ""
            ahead += filter(None, (target_of(path, link) for link in _LINK.findall(text)))
    return {path for path in found if path.endswith(".md") or not path.startswith("docs/")}


@cache
def modules() -> dict[str, ast.Module]:
    """The package's modules by path; commands are shown by their help."""
    paths = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "sparsevid").rglob("*.py"))
    return {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in paths if "/cli/" not in path}


def names(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """What a module or class defines, with the statement that does."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((name.id, node) for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def public(path: str) -> list[str]:
    """The public names that a module defines itself, in their order."""
    defined = dict.fromkeys(name for name, _ in names(modules()[path].body))
    return [name for name in defined if not name.startswith("_") and name not in PUBLIC_NOT]


@cache
def lines() -> dict[str, tuple[str, int]]:
    """Dotted name of what is defined → its file and first line."""
    found = {}
    for path, module in modules().items():
        for name, node in names(module.body):
            found[f"{dotted(path)}.{name}"] = path, node.lineno
            for inner, member in names(node.body) if isinstance(node, ast.ClassDef) else ():
                found[f"{dotted(path)}.{name}.{inner}"] = path, member.lineno
    return found


def reference_pages() -> dict[str, str]:
    """Path of each module → where its page of the reference stands; a folder's is the one of its section."""
    inner = {path: path.removeprefix("sparsevid/").removesuffix(".py") for path in modules() if path.count("/") > 1}
    return {
        path: f"reference/{name.removesuffix('__init__')}{'index' * name.endswith('__init__')}.md"
        for path, name in inner.items()
    }


def reference(path: str) -> str:
    members = public(path)
    listed = "".join(f'\n        - "{name}"' for name in members) if members else " false"
    return f"# {dotted(path)}\n\n::: {dotted(path)}\n    options:\n      members:{listed}\n"


def sections() -> list:
    """The navigation of the reference: a section a folder, its own page first."""
    tree: dict = {}
    for path, uri in reference_pages().items():
        place = tree
        for folder in path.split("/")[1:-1]:
            place = place.setdefault(folder, {})
        place[Path(uri).stem] = uri

    def listed(place: dict) -> list:
        first = [place["index"]] if "index" in place else []
        return first + [
            {name: listed(each) if isinstance(each, dict) else each} for name, each in place.items() if name != "index"
        ]

    return listed(tree)


def front() -> str:
    """The first page of the reference: what the package itself offers, and what each room is for."""
    package = import_module("sparsevid")
    offered = {name: f"{module}.{name}" for name, module in package._LAZY.items()}
    text = "# Python\n\nFor those who write code with the library, or in it: every public name once, on the page of\n"
    text += "its module, with a link to its source.\n\n"
    text += "What `import sparsevid` offers, imported on first use:\n\n| name | stands in |\n|---|---|\n"
    text += "".join(f"| [`{name}`][{place}] | `{place.rpartition('.')[0]}` |\n" for name, place in offered.items())
    text += "\nEach room of the package, and what it is for:\n\n| room | |\n|---|---|\n"
    for path, uri in reference_pages().items():
        if path.count("/") == 2 and uri.endswith("/index.md"):
            purpose = ast.get_docstring(modules()[path]).split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
            text += f"| [{path.split('/')[1]}]({uri.removeprefix('reference/')}) | {purpose} |\n"
    return text


def commands() -> str:
    """The help of every command, as it is printed."""
    cli = import_module("sparsevid.cli")
    text = "# Commands\n\nEvery command with all its options, to look one up: `sparsevid COMMAND --help` prints the same.\n"
    text += "How they are used together is in the [tutorials](../tutorials/own-videos.md).\n"
    for name, purpose in cli.COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"sparsevid {name}", description=purpose, formatter_class=formatter(cli))
        import_module(f"sparsevid.cli.{name}").add_arguments(parser)
        text += f"\n## {name}\n" + "".join(f"\n```text\n{each.format_help()}```\n" for each in parsers(parser))
    return text.replace(f"{ROOT}/", "")


def formatter(cli) -> type:
    """Help as wide as the column of the site, whatever the terminal."""
    return type(
        "Formatter", (cli._Formatter,), {"__init__": lambda self, prog: super(type(self), self).__init__(prog, width=84)}
    )


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its actions."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                each.formatter_class = parser.formatter_class
                yield from parsers(each)
