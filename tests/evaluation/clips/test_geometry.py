"""A protocol says whether frames are scored as they are stored or as a player shows them, and the two are never compared."""

import dataclasses

import pytest
import torch
from einops import rearrange
from PIL import Image
from videos.made import moving_pictures
from videos.shown import TURNS, write_shown

from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.comparison import compare_features
from sparsevid.evaluation.features import compute_features, load_features, save_features
from sparsevid.evaluation.protocols import Protocol
from sparsevid.videos.read import read_frames


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    """A turned video, an upright one, and a frame folder of turned images."""
    root = tmp_path_factory.mktemp("phone")
    write_shown(root / "turned.mp4", matrix=TURNS["clockwise"][0], frames=4)
    write_shown(root / "upright.mp4", frames=4)
    (root / "folder").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, picture in enumerate(moving_pictures(4)):
        Image.fromarray(picture).save(root / "folder" / f"{i}.png", exif=exif)
    return root


def in_geometry(protocol: Protocol, geometry: str) -> Protocol:
    changes = {"real_count": 3, "fake_count": 3, "clips_per_video": 1, "size": (24, 24)}
    return dataclasses.replace(protocol, geometry=geometry, **changes)


@pytest.mark.parametrize("role", ["real", "fake"])
def test_clips_are_read_as_the_protocol_says(phone, protocol, role):
    chosen = {each: choose_clips(phone, role, in_geometry(protocol, each)) for each in ("stored", "display")}
    for geometry, clips in chosen.items():
        assert len(clips) == 3
        for name, clip in clips:
            frames = read_frames(phone / name.rpartition("@")[0], range(4), display=geometry == "display")
            expected = clips.reader.shape.resized(frames)
            assert torch.equal(rearrange(clip, "c t h w -> t c h w"), expected)
    assert chosen["stored"].ids == chosen["display"].ids
    assert chosen["stored"].fingerprint != chosen["display"].fingerprint


def test_without_a_resize_videos_are_of_one_size_as_they_are_read(phone, protocol):
    """Stored, all are 112x48; shown, some are 48x112."""
    stored, display = (dataclasses.replace(in_geometry(protocol, each), size=None) for each in ("stored", "display"))
    assert {tuple(clip.shape) for _, clip in choose_clips(phone, "real", stored)} == {(3, 4, 48, 112)}
    with pytest.raises(ValueError, match="does not resize, and the videos differ in size: 'turned.mp4' is 48x112"):
        choose_clips(phone, "real", display)


def test_features_of_before_there_was_the_field_still_count(phone, protocol, detector, tmp_path):
    rules = in_geometry(protocol, "stored")
    clips = {role: choose_clips(phone, role, rules) for role in ("real", "fake")}
    before = {key: value for key, value in rules.as_dict().items() if key != "geometry"}
    old = compute_features(clips["real"], detector, out=tmp_path / "real.safetensors", role="real", protocol=before)
    written = (tmp_path / "real.safetensors").stat().st_mtime_ns
    new = compute_features(clips["fake"], detector, role="fake", protocol=rules.as_dict())
    loaded = load_features(tmp_path / "real.safetensors")
    assert loaded.protocol == before
    assert compare_features(loaded, new).protocol == rules.as_dict()
    again = compute_features(clips["real"], detector, out=tmp_path / "real.safetensors", role="real", protocol=rules.as_dict())
    assert torch.equal(again.features, old.features)
    assert (tmp_path / "real.safetensors").stat().st_mtime_ns == written, "it need not be computed again"
    shown = in_geometry(protocol, "display")
    other = compute_features(choose_clips(phone, "fake", shown), detector, role="fake", protocol=shown.as_dict())
    save_features(other, tmp_path / "fake.safetensors")
    with pytest.raises(ValueError, match="cannot be compared: protocol of real is"):
        compare_features(loaded, load_features(tmp_path / "fake.safetensors"))
