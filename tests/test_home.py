"""`~` at the beginning of a path, wherever it is written."""

import os
from pathlib import Path

import pytest

from sparsevid.cli import main
from sparsevid.data.cards import Card, resolve_root
from sparsevid.home import expand_home
from sparsevid.pretrained import parse_autoencoder


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
    assert main(["convert", "~/x.pt", "out"]) == 2 and f"there is no file {home}/x.pt" in capsys.readouterr().err
    (home / "birds").mkdir()
    monkeypatch.setenv("SPARSEVID_DATA", "~")
    assert resolve_root(Card(name="birds")) == resolve_root(Card(name="x", root="~/birds")) == home / "birds"
    with pytest.raises(FileNotFoundError, match=f"{home}/vae"):
        parse_autoencoder("linear:~/vae")
