"""What tutorials say is typed in an empty folder."""

import argparse
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from tutorials import TUTORIALS, blocks, script, type_in

from sparsevid.cli import COMMANDS, _module
from sparsevid.data.tree.cards import load_card
from sparsevid.runs.config import load_config
from sparsevid.videos.read import read_frames
from sparsevid.videos.write import write_clip

COMMAND = "sparsevid "
DRAWN = {"classes": ["all"], "text": ["samples", "negative"]}  # folders of samples that are looked at
MEANT = {"a white ball between two paddles": "pong", "a chicken crosses a road": "freeway"}  # prompts, and their games


def commands(text: str) -> list[list[str]]:
    """The arguments of each call of `sparsevid` in a Bash block."""
    joined = text.replace("\\\n", " ").replace("-m -- sparsevid.cli", "; sparsevid")
    lines = [line.strip().removeprefix("! ") for line in joined.replace(" ; ", "\n").split("\n")]
    return [shlex.split(line)[1:] for line in lines if line.startswith(COMMAND)]


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_does_in_an_empty_folder_what_it_says(tutorial, real_videos, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    if "make_data atari" in tutorial.read_text(encoding="utf-8") and importlib.util.find_spec("ale_py") is None:
        pytest.skip("needs ale-py (extra `atari`)")
    done = type_in(tutorial.read_text(encoding="utf-8"), folder)
    assert done.returncode == 0, done.stdout[-4000:]
    for samples in DRAWN.get(tutorial.stem, ()):
        assert wrong_games(folder / "games" / "test", folder / samples) == []


def wrong_games(clips: Path, samples: Path) -> list[str]:
    """The samples whose colours are nearest to those of another game's clips than the one that was asked for."""
    real = {each.parent.name: colours(each) for each in clips.glob("*/000000.mkv")}
    settings = json.loads((samples / "samples.json").read_text())["settings"]
    asked = settings.get("classes") or [MEANT[prompt] for prompt in settings["prompts"]]
    assert len(real) > 1 and set(asked) <= set(real)
    drawn = {each: asked[int(each.stem) % len(asked)] for each in sorted(samples.glob("*.mp4"))}
    assert set(drawn.values()) == set(asked)
    nearest = {each: min(real, key=lambda name: (colours(each) - real[name]).abs().sum()) for each in drawn}
    return [f"{each.name}: {nearest[each]}, not {name}" for each, name in drawn.items() if nearest[each] != name]


@pytest.mark.parametrize(
    "settings", [{"classes": ["pong", "freeway"]}, {"prompts": [*MEANT]}], ids=lambda each: next(iter(each))
)
def test_a_sample_of_another_game_is_seen(settings, tmp_path):
    shades = {"pong": 40, "freeway": 200}
    for game, shade in shades.items():
        (tmp_path / game).mkdir()
        write_clip(tmp_path / game / "000000", torch.full((3, 8, 16, 16), shade, dtype=torch.uint8), 8, "ffv1")
    (tmp_path / "samples.json").write_text(json.dumps({"settings": settings}))
    for number, shade in enumerate((50, 190, 180)):
        write_clip(tmp_path / f"{number:06d}", torch.full((3, 8, 16, 16), shade, dtype=torch.uint8), 8, "mp4")
    assert wrong_games(tmp_path, tmp_path) == ["000002.mp4: freeway, not pong"]


def colours(file):
    """Mean red, green and blue of a video's first frames."""
    return read_frames(file, range(8)).float().mean((0, 2, 3))


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_commands_settings_and_code_of_a_tutorial_are_known(tutorial, tmp_path):
    """Of all blocks, those that need weights too: nothing is run, but all of it is read by what would read it."""
    found = blocks(tutorial.read_text(encoding="utf-8"))
    assert {block.language for block in found} <= {"bash", "python", "yaml"} and found
    for block in found:
        if block.language == "python":
            compile(block.text, tutorial.name, "exec")
        elif block.language == "yaml":
            file = tmp_path / "block.yaml"
            file.write_text(block.text, encoding="utf-8")
            load_config(file) if re.search("^train:", block.text, re.MULTILINE) else load_card(str(file))
        for arguments in commands(block.text) if block.language == "bash" else ():
            parser = argparse.ArgumentParser()
            assert arguments[0] in COMMANDS
            _module(arguments[0]).add_arguments(parser)
            parser.parse_args(arguments[1:])


def test_few_blocks_of_tutorials_need_what_is_not_here():
    found = [block for path in TUTORIALS for block in blocks(path.read_text(encoding="utf-8"))]
    assert 0 < sum(block.needs_weights for block in found) < 0.1 * len(found)


def test_blocks_are_typed_in_order_and_end_where_one_fails(tmp_path):
    text = (
        '```yaml title="a.yaml"\nx: 1\n```\n\n```bash\ncat a.yaml > b\n```\n\n```yaml\nnot: written\n```\n\n'
        "<!-- needs weights -->\n```bash\nfalse\n```\n\n```bash\nexport X=told\n```\n\n"
        "```bash\necho $X; false\necho never\n```\n"
    )
    assert [block.needs_weights for block in blocks(text)] == [False, False, False, True, False, False]
    assert "not: written" not in script(text)
    (tmp_path / "empty").mkdir()
    done = type_in(text, tmp_path / "empty")
    assert done.returncode == 1 and done.stdout == "told\n"
    assert (tmp_path / "empty" / "b").read_text() == "x: 1\n"
