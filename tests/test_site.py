"""The site: every public name once, with its source; links that hold; nothing from elsewhere."""

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_ADDRESS = re.compile(r"<(?:script|link|img|iframe|source)[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//", re.IGNORECASE)


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    pytest.importorskip("griffe", reason="needs the extra `docs`")
    spec = spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_but_commands_has_a_page_and_a_place(hooks):
    pages = hooks.reference_pages()
    commands = {path for path in (ROOT / "sparsevid").rglob("*.py") if "cli" in path.parts}
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sparsevid").rglob("*.py") if path not in commands}
    assert pages.keys() == found - {"sparsevid/__init__.py"}
    assert sorted(re.findall(r"'(reference/[^']+)'", str(hooks.sections()))) == sorted(pages.values())
    assert len(set(pages.values())) == len(pages)


def test_public_names_are_those_that_a_module_defines_and_each_has_a_line(hooks):
    named = [f"{hooks.dotted(path)}.{name}" for path in hooks.reference_pages() for name in hooks.public(path)]
    assert max(Counter(named).values()) == 1 and len(named) > 500
    assert {"sparsevid.models.transformer.DiffusionTransformer", "sparsevid.savings.options.parse_saving"} <= set(named)
    assert "sparsevid.savings.parse_saving" not in named and not [name for name in named if "._" in name]
    for name in named:
        path, line = hooks.lines()[name]
        assert name.rpartition(".")[2] in (ROOT / path).read_text(encoding="utf-8").split("\n")[line - 1], name


def test_links_of_the_repository_lead_to_pages(hooks):
    assert hooks.target_of("docs/training.md", "../configs/README.md") == "configs/README.md"
    assert [hooks.target_of("README.md", link) for link in ("https://x.org/a.md", "docs", "../a.md", "none.md")] == [None] * 4
    for path in ("README.md", "configs/README.md", "docs/training.md", "docs/tutorials/text.md", "notebooks/quickstart.ipynb"):
        assert hooks.path_of(hooks.uri_of(path)) == path
    assert hooks.path_of(hooks.uri_of("sparsevid/runs/config.py")) is None  # a listing, whose text is code
    assert {"sparsevid/runs/config.py", "datasets/imagenet.yaml", "docs/study.md"} <= hooks.linked(["README.md"])


def test_a_page_is_summed_up_by_its_first_sentences(hooks):
    first = "What `x` is: [a link](b.md) and\nmore. " + "Then a sentence. " * 30
    text = f"# Title\n\n![a](b.png)\n\n    code\n\n{first}\n\nA second part."
    said = hooks.summary(text)
    assert said.startswith("What x is: a link and more. Then a sentence.") and said.endswith(".")
    assert len(said) <= hooks.SUMMARY and hooks.summary("# Title\n") == ""
    for path in (*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.md"), ROOT / "README.md"):
        assert 20 < len(hooks.summary(path.read_text(encoding="utf-8"))) <= hooks.SUMMARY, path


@pytest.mark.slow
def test_the_site_is_built_without_a_network(hooks, tmp_path):
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "https_proxy": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    assert [page for page, text in pages.items() if _ADDRESS.search(text)] == []
    shown = Counter(name for text in pages.values() for name in re.findall(r'<h2 id="(sparsevid\.[\w.]+)" class="doc ', text))
    assert shown.keys() == {f"{hooks.dotted(path)}.{name}" for path in hooks.reference_pages() for name in hooks.public(path)}
    assert set(shown.values()) == {1}
    named = [text for page, text in pages.items() if "files" not in page.parts and page.name != "404.html"]
    titles = Counter(re.search("<title>(.*?)</title>", text)[1] for text in named)
    assert [title for title, times in titles.items() if times > 1] == []
    for page, text in pages.items():
        for target, anchor in re.findall(r'<a class="source" href="([^"#]+)#([^"]+)"', text):
            assert f'id="{anchor}"' in pages[(page.parent / target).resolve()], (page, target)
