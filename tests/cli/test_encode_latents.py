"""The command that writes latent caches: on several ranks, from a card, and what it says when it cannot."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from videos.made import moving_pictures, write_video
from videos.shown import TURNS, write_shown

from sparsevid.cli import run_tool
from sparsevid.data.latents.read import LatentCache, LatentFrames
from sparsevid.data.sources import VideoFrames
from sparsevid.data.tree.cards import load_card
from sparsevid.data.tree.manifest import build_manifest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "encode_latents.py"


@pytest.fixture(autouse=True)
def own_manifests(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SPARSEVID_CACHE", str(tmp_path_factory.mktemp("manifests")))


@pytest.fixture
def card(tmp_path):
    """A card of two short videos, 16×24 pixels, mirrored."""
    write_video(tmp_path / "videos" / "one.mp4", frames=20)
    write_video(tmp_path / "videos" / "two.mkv", frames=15)
    path = tmp_path / "small.yaml"
    path.write_text(f"name: small\nroot: {tmp_path / 'videos'}\nclip: {{frames: 4, size: [16, 24], flip: true}}\n")
    return path


@pytest.fixture
def vae(tmp_path):
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    model = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16, **blocks)
    model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def encode(*arguments):
    return run_tool("encode_latents", [str(argument) for argument in arguments])


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_any_number_of_ranks_writes_the_same_files(card, vae, tmp_path):
    options = ["--source", str(vae), "--batch", "8", "--shard-mb", "1", "--size", "64", "64", "--dtype", "float32"]
    assert encode(card, "--out", tmp_path / "one", *options) == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(TOOL), str(card), "--out", str(tmp_path / "two"), *options]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2" in done.stderr
    assert len(LatentCache.open(tmp_path / "one").shards) == 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_card_says_size_and_flip_unless_told(card, tmp_path):
    assert encode(card, "--out", tmp_path / "card", "--autoencoder", "pixels") == 0
    cache = LatentCache.open(tmp_path / "card")
    assert (cache.size, cache.flip, cache.dtype, cache.frames) == ((16, 24), True, "uint8", 35)
    assert cache.rule["frames"] == 4 and cache.manifest == build_manifest(tmp_path / "videos").fingerprint
    told = ["--autoencoder", "pixels", "--size", "8", "10", "--no-flip"]
    assert encode(card, "--out", tmp_path / "told", *told) == 0
    cache = LatentCache.open(tmp_path / "told")
    assert (cache.size, cache.flip) == ((8, 10), False)


def test_frames_are_encoded_as_they_are_shown_unless_told(tmp_path):
    write_shown(tmp_path / "videos" / "v.mp4", matrix=TURNS["clockwise"][0])
    card = tmp_path / "phone.yaml"
    card.write_text(f"name: phone\nroot: {tmp_path / 'videos'}\nclip: {{frames: 4, size: [16, 24], flip: false}}\n")
    for name, options in (("displayed", []), ("stored", ["--no-display"])):
        arguments = (card, "--out", tmp_path / name, "--autoencoder", "pixels", *options)
        assert encode(*arguments) == 0 and encode(*arguments, "--verify") == 0
        rules = replace(load_card(card).rules(), display=name == "displayed")
        manifest = build_manifest(tmp_path / "videos", rules)
        cache = LatentCache.open(tmp_path / name)
        cached, decoded = LatentFrames(cache), VideoFrames(manifest.root, (16, 24))
        assert cache.manifest == manifest.fingerprint
        assert torch.equal(cached.read(manifest.videos[0], [5], False), decoded.read(manifest.videos[0], [5], False))
    assert encode(card, "--out", tmp_path / "stored", "--autoencoder", "pixels", "--verify") == 2


def test_trees_of_images_are_videos_of_one_frame(tmp_path):
    for i, picture in enumerate(moving_pictures(5, 30, 40)):
        folder = tmp_path / "pictures" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i}.png")
    card = tmp_path / "pictures.yaml"
    card.write_text(
        f"name: pictures\nroot: {tmp_path / 'pictures'}\nmedia: image\nlabel_rule: folder\nclip: {{frames: 1, size: [8, 8]}}\n"
    )
    assert encode(card, "--out", tmp_path / "cache", "--autoencoder", "pixels") == 0
    manifest = build_manifest(tmp_path / "pictures", load_card(card).rules())
    cached, decoded = LatentFrames(LatentCache.open(tmp_path / "cache")), VideoFrames(manifest.root, (8, 8))
    assert len(manifest.videos) == 5
    assert all(torch.equal(cached.read(video, [0], False), decoded.read(video, [0], False)) for video in manifest.videos)


def test_verify_finds_damage_and_writes_nothing(card, tmp_path, capsys):
    arguments = (card, "--out", tmp_path / "cache", "--autoencoder", "pixels")
    assert encode(*arguments) == 0 and encode(*arguments, "--verify") == 0
    shard = tmp_path / "cache" / "shards" / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    before = contents(tmp_path / "cache")
    assert encode(*arguments, "--verify") == 2
    assert "shard-00000.safetensors does not have its recorded checksum" in capsys.readouterr().err
    assert encode(*arguments, "--verify", "--size", 8, 8) == 2
    assert "the cache has 16×24, the run needs 8×8" in capsys.readouterr().err
    assert contents(tmp_path / "cache") == before
    assert encode(*arguments) == 0 and encode(*arguments, "--verify") == 0


def test_after_a_full_scan_the_same_command_goes_on(card, tmp_path, capsys):
    path = write_video(tmp_path / "videos" / "zz.mp4", frames=120)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 800] = bytes(800)
    path.write_bytes(content)
    arguments = (card, "--out", tmp_path / "cache", "--autoencoder", "pixels", "--size", 160, 240, "--shard-mb", 8)
    assert encode(*arguments) == 2
    assert "zz.mp4" in (said := capsys.readouterr().err) and "sparsevid prepare_data CARD --full-scan" in said
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "shards").glob("*.safetensors")}
    assert written
    assert run_tool("prepare_data", [str(card), "--full-scan", "--clips", "0"]) == 0
    assert encode(*arguments) == 0 and encode(*arguments, "--verify") == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert LatentCache.open(tmp_path / "cache").frames == 35


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the autoencoder kl needs a source"),
        (["--source", "/no/such/folder"], "cannot load an AutoencoderKL"),
        (["--autoencoder", "pixels", "--source", "here"], "pixels has none"),
        (["--autoencoder", "pixels", "--batch", "0"], "--batch is at least 1, got 0"),
        (["--autoencoder", "pixels", "--shard-mb", "0"], "--shard-mb is at least 1, got 0"),
        (["--autoencoder", "pixels", "--dtype", "float16"], "accepted: uint8"),
        (["--autoencoder", "pixels", "--verify"], "is no latent cache: it has no cache.json"),
    ],
)
def test_what_cannot_be_done_is_said(card, arguments, message, tmp_path, capsys):
    assert encode(card, "--out", tmp_path / "cache", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
