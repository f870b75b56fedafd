"""The blocks of a tutorial, and a script that does what a reader would type.

A block `bash` is typed, `python` run as a script of its own, `yaml` written to the file that its title names. A comment
`<!-- needs weights -->` above a block says that what it needs is not here, and it is left out; a YAML block without a title is
for reading.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NEEDS_WEIGHTS = "<!-- needs weights -->"
_BLOCK = re.compile(r"^(<!-- [^\n]* -->\n)?```(\S*)(?: title=\"([^\"\n]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, the file that it is, whether it needs what is not here, and its text."""

    language: str
    title: str
    needs_weights: bool
    text: str


def blocks(text: str) -> list[Block]:
    """All blocks of a document, in order."""
    return [
        Block(found[2], found[3] or "", (found[1] or "").strip() == NEEDS_WEIGHTS, found[4]) for found in _BLOCK.finditer(text)
    ]


def script(text: str) -> str:
    """What a reader of a document types, as one Bash script that ends where a command fails."""
    lines = ["set -euo pipefail"]
    for block in blocks(text):
        if block.needs_weights or (block.language == "yaml" and not block.title):
            continue
        if block.language == "bash":
            lines.append(block.text)
        else:
            command = f"cat > {block.title}" if block.language == "yaml" else "python -"
            lines.append(f"{command} <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
    return "\n".join(lines) + "\n"


def type_in(text: str, folder: Path, seconds: float = 900) -> subprocess.CompletedProcess:
    """Type a document's blocks in a folder, with this Python and this package behind `python`, `sparsevid` and `torchrun`."""
    programs = folder.parent / f"{folder.name}-bin"
    programs.mkdir()
    for name, module in {"python": "", "sparsevid": " -m sparsevid.cli", "torchrun": " -m torch.distributed.run"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", script(text)], cwd=folder, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=seconds,
    )  # fmt: skip
