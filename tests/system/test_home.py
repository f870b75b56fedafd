"""`~` in paths, wherever it is written; a user without a home gets one for the caches, and who has one keeps it."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sparsevid.cli import main
from sparsevid.data.tree.cards import Card, resolve_root
from sparsevid.generation.pretrained import parse_autoencoder
from sparsevid.system import home as home_module
from sparsevid.system.home import ensure_home, expand_home

# What is imported first: another user may not be allowed to read the interpreter's files.
NAMELESS = """
import os, sys, tempfile
from pathlib import Path
from sparsevid.data.tree.manifest import cache_folder
from sparsevid.system.home import ensure_home
os.environ.pop("HOME", None)
os.setuid(int(sys.argv[1]))
for _ in range(2):
    os.environ.pop("HOME", None)
    ensure_home()
    folder = Path(os.environ["HOME"])
    assert cache_folder().is_relative_to(folder), cache_folder()
    assert folder.parent == Path(tempfile.gettempdir()) and folder.stat().st_mode & 0o777 == 0o700
print(folder)
"""


def nameless() -> int:
    """A user's number that has no name here."""
    taken = {each.pw_uid for each in pwd.getpwall()}
    return next(number for number in range(54321, 60000) if number not in taken)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user without a name")
def test_a_user_without_name_and_home_has_caches():
    with tempfile.TemporaryDirectory() as folder:  # not `tmp_path`, which lies in folders of this user alone
        Path(folder).chmod(0o777)
        environment = {**os.environ, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("SPARSEVID_CACHE", None)
        command = [sys.executable, "-c", NAMELESS, str(nameless())]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == f"{folder}/sparsevid-home-{nameless()}", done.stderr
    assert "has no HOME: caches are kept in" in done.stderr


def test_who_has_a_home_keeps_it(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    ensure_home()
    assert os.environ["HOME"] == "/somewhere"


def test_a_folder_that_is_another_users_is_not_taken(tmp_path, monkeypatch):
    """Or a link to one: the folder for temporary files is everybody's."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    user = os.getuid()
    assert home_module._substitute(user) == tmp_path / f"sparsevid-home-{user}" == home_module._substitute(user)
    (tmp_path / f"sparsevid-home-{user + 1}").mkdir()
    (tmp_path / f"sparsevid-home-{user + 2}").symlink_to(tmp_path)
    for other in (1, 2):
        with pytest.raises(OSError, match="is another user's: set HOME to a folder of this user"):
            home_module._substitute(user + other)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_paths_are_found_at_any_depth(home):
    given = {"a": ["~/x", Path("~/y"), 3, None], "b": {"c": "~"}}
    assert expand_home(given) == {"a": [f"{home}/x", home / "y", 3, None], "b": {"c": str(home)}}


@pytest.mark.parametrize("text", ["x/~/y", "~x", "a ~/b", "", "kl:~/x", "~no-such-user/x"])
def test_what_is_no_such_path_stays(home, text):
    assert expand_home(text) == text and expand_home(Path(text)) == Path(text)


def test_without_a_home_folder_nothing_is_raised(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 987654)  # no user of the machine
    assert expand_home("~/x") == "~/x" and expand_home(Path("~/x")) == Path("~/x")


def test_commands_cards_and_autoencoders_know_it(home, monkeypatch, capsys):
    assert main(["sample", "~/run"]) == 2 and f"{home}/run is neither a checkpoint" in capsys.readouterr().err
    assert main(["convert", "~/x.pt", "out"]) == 2 and f"there is no file or folder {home}/x.pt" in capsys.readouterr().err
    (home / "birds").mkdir()
    monkeypatch.setenv("SPARSEVID_DATA", "~")
    assert resolve_root(Card(name="birds")) == resolve_root(Card(name="x", root="~/birds")) == home / "birds"
    with pytest.raises(FileNotFoundError, match=f"{home}/vae"):
        parse_autoencoder("linear:~/vae")
