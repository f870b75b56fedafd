"""Frames come as a player shows them, the same by both backends; on request as they are stored; and the two never mix."""

import hashlib
import json
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from data.caches import write
from einops import rearrange
from PIL import Image, ImageOps
from videos.made import moving_pictures, sequential, write_video
from videos.shown import TURNS, set_container_aspect, set_matrix, stretched, write_shown

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.data.latents.read import LatentCache, LatentFrames
from sparsevid.data.open import open_data
from sparsevid.data.sources import MemoryFrames, VideoFrames
from sparsevid.data.transforms import resize_crop
from sparsevid.data.tree import findings
from sparsevid.data.tree.cards import load_card
from sparsevid.data.tree.manifest import build_manifest, open_manifest
from sparsevid.data.tree.rules import TreeRules
from sparsevid.runs.config import load_config
from sparsevid.videos.display import MIRRORED_OR_NOT, OBLIQUE, ODD_PIXELS, SHOWN_OTHERWISE
from sparsevid.videos.read import BACKENDS, iter_frames, probe, read_frames

AS_STORED = TreeRules(display=False)


def decoded(path):
    """Stored frames uint8 (T,C,H,W), decoded from start to end."""
    return rearrange(torch.from_numpy(np.stack(sequential(path))), "t h w c -> t c h w")


def assert_shown(path, expected):
    """Every way to read a file gives what a player shows, or on request what is stored."""
    stored = decoded(path)
    wanted = [3, 0, len(stored) - 1, 3]
    for frames, display in ((expected, True), (stored, False)):
        for backend in BACKENDS:
            read = read_frames(path, wanted, backend, display=display)
            assert read.is_contiguous() and torch.equal(read, frames[wanted]), (backend, display)
        assert torch.equal(torch.cat(list(iter_frames(path, 5, display=display))), frames)
        info = probe(path, display=display)
        assert (info.height, info.width) == tuple(frames.shape[2:]) and info.frames == len(frames)
    assert torch.equal(read_frames(path, wanted), expected[wanted])


@pytest.mark.parametrize("name", TURNS)
def test_frames_are_turned_as_the_container_says(tmp_path, name):
    """Turned, half of them are narrower than 96 pixels, where decord takes padding for channels."""
    matrix, turn = TURNS[name]
    path = write_shown(tmp_path / "v.mp4", matrix=matrix)
    assert_shown(path, turn(decoded(path)))
    assert probe(path).notes == () and (probe(path).stored is None) == (name == "none")


@pytest.mark.parametrize("name", ["clockwise", "half", "counterclockwise"])
def test_turns_are_those_of_other_readers(tmp_path, name):
    """decord lays the frames of files with a rotation by its own reading of it."""
    decord = pytest.importorskip("decord", reason="needs decord")
    path = write_shown(tmp_path / "v.mp4", matrix=TURNS[name][0], size=(96, 128))
    other = torch.from_numpy(decord.VideoReader(str(path))[4].asnumpy())
    assert torch.equal(rearrange(other, "h w c -> c h w"), read_frames(path, [4])[0])


def test_frames_are_turned_as_the_stream_says(tmp_path):
    """H.264 may say it in messages of its own (SEI), for containers that cannot."""
    source_path = write_shown(tmp_path / "source.mp4")
    with av.open(str(source_path)) as source, av.open(str(tmp_path / "v.mkv"), "w") as container:
        given = source.streams.video[0]
        copied = container.add_stream_from_template(given)
        described = av.BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90", given, copied)
        for packet in (*[*source.demux(given)][:-1], None):
            for each in described.filter(packet):
                each.stream = copied
                container.mux(each)
    assert_shown(tmp_path / "v.mkv", torch.rot90(decoded(tmp_path / "v.mkv"), 1, (2, 3)))


ASPECTS = {  # name → (what is written, width as shown)
    "h264.mp4": ({"aspect": Fraction(16, 11)}, 163),
    "narrow.mp4": ({"aspect": Fraction(2, 3), "size": (48, 128)}, 85),
    "h264.mkv": ({"aspect": Fraction(12, 11)}, 122),
    "xvid.avi": ({"codec": "mpeg4", "aspect": Fraction(10, 11)}, 102),  # the stream alone says it
    "dvd.mkv": ({"codec": "mpeg2video", "aspect": Fraction(16, 15), "size": (144, 180)}, 192),
    "dv.avi": ({"codec": "dvvideo", "aspect": Fraction(16, 15), "size": (576, 720), "frames": 4}, 768),
}


@pytest.mark.parametrize("name", ASPECTS)
def test_pixels_become_square(tmp_path, name):
    written, width = ASPECTS[name]
    path = write_shown(tmp_path / name, **written)
    assert_shown(path, stretched(decoded(path), width))
    (video,) = build_manifest(tmp_path).videos
    assert (video.width, video.height) == (width, written.get("size", (48, 112))[0])


def test_pixels_become_square_before_frames_are_turned(tmp_path):
    path = write_shown(tmp_path / "v.mp4", aspect=Fraction(4, 3), matrix=TURNS["clockwise"][0])
    assert_shown(path, torch.rot90(stretched(decoded(path), 149), -1, (2, 3)))
    assert (probe(path).width, probe(path).height, probe(path).stored) == (48, 149, (112, 48))


def test_the_container_says_what_pixels_are_before_the_stream_does(tmp_path):
    path = write_shown(tmp_path / "v.mp4", aspect=Fraction(16, 11))
    set_container_aspect(path, 3, 4)
    assert_shown(path, stretched(decoded(path), 84))
    set_container_aspect(path, 0, 1)  # says that it does not know
    assert_shown(path, stretched(decoded(path), 163))


@pytest.mark.parametrize(("aspect", "notes"), [((1, 1), ()), ((1281, 1280), ()), ((60000, 1), (ODD_PIXELS,))])
def test_pixels_stay_that_are_square_but_for_rounding_or_cannot_be_meant(tmp_path, aspect, notes):
    """A width of 427 that an encoder made 426 is written as pixels of 640:639; to stretch it would only blur it."""
    path = write_shown(tmp_path / "v.mp4", aspect=Fraction(16, 11))
    set_container_aspect(path, *aspect)
    assert_shown(path, decoded(path))
    assert probe(path).notes == notes and probe(path).stored is None


@pytest.mark.parametrize("matrix", [(0.7071, 0.7071, -0.7071, 0.7071), (1, 0.5, 0.5, 1)], ids=["45 degrees", "sheared"])
def test_another_angle_is_told_and_left_alone(tmp_path, matrix):
    path = write_shown(tmp_path / "v.mp4", matrix=matrix, size=(96, 128))
    assert_shown(path, decoded(path))
    assert build_manifest(tmp_path, strict=True).notes == {OBLIQUE: ["v.mp4"]}


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (2, 0, 0, 2), (1, 0.001, -0.001, 1)])
def test_a_matrix_that_turns_nothing(tmp_path, matrix):
    path = write_shown(tmp_path / "v.mp4")
    set_matrix(path, matrix)
    assert_shown(path, decoded(path))
    assert probe(path).notes == () and probe(path).stored is None


def test_a_rotation_beside_side_data_that_pyav_does_not_know(tmp_path):
    """FFmpeg hands on the EXIF of MJPEG, for which PyAV may refuse to read all that stands beside it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(moving_pictures(1)[0]).save(tmp_path / "f.jpg", exif=exif)
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 112, "yuvj420p"
        for i in range(4):
            packet = av.Packet((tmp_path / "f.jpg").read_bytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    assert_shown(tmp_path / "v.avi", torch.rot90(decoded(tmp_path / "v.avi"), -1, (2, 3)))
    assert set(probe(tmp_path / "v.avi").notes) <= {MIRRORED_OR_NOT}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_images_are_turned_as_viewers_turn_them(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, picture in enumerate(moving_pictures(3, 10, 14)):
        Image.fromarray(picture).save(folder / f"{i}.{suffix}", exif=exif)
    for i in range(3):
        with Image.open(folder / f"{i}.{suffix}") as image:
            stored, shown = (rearrange(np.array(each), "h w c -> c h w") for each in (image, ImageOps.exif_transpose(image)))
        for path, frame in ((folder, i), (folder / f"{i}.{suffix}", 0)):
            for expected, display in ((shown, True), (stored, False)):
                assert np.array_equal(read_frames(path, [frame], display=display)[0], expected)
                assert np.array_equal(torch.cat(list(iter_frames(path, 2, display=display)))[frame], expected)
                info = probe(path, display=display)
                assert (info.height, info.width) == expected.shape[1:]
    sizes = {(video.height, video.width) for video in build_manifest(tmp_path, TreeRules(media="image")).videos}
    assert sizes == {(14, 10) if orientation > 4 else (10, 14)}


def test_an_orientation_that_cannot_be_read_turns_nothing(tmp_path):
    picture = Image.fromarray(moving_pictures(1, 10, 14)[0])
    for name, exif in (("broken.png", b"Exif\0\0II*\0\xff\xff\xff\xff"), ("short.png", b"Exif\0\0II"), ("ninth.png", None)):
        values = Image.Exif()
        values[0x0112] = 9
        picture.save(tmp_path / name, exif=values if exif is None else exif)
        assert np.array_equal(rearrange(read_frames(tmp_path / name, [0])[0], "c h w -> h w c"), picture), name
        assert probe(tmp_path / name).stored is None


@pytest.mark.parametrize("turned", [0, 1])
def test_a_folder_is_turned_for_its_readers_if_its_first_frame_is(tmp_path, turned):
    """A manifest looks at no other frame, and its fingerprint has to say what is read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "mixed").mkdir()
    for i, picture in enumerate(moving_pictures(3, 14, 14)):
        Image.fromarray(picture).save(tmp_path / "mixed" / f"{i}.png", **({"exif": exif} if i == turned else {}))
    manifests = [build_manifest(tmp_path, TreeRules(display=display), full_scan=True) for display in (True, False)]
    shown, stored = (VideoFrames(tmp_path, (14, 14)).read(each.videos[0], range(3), mirrored=False) for each in manifests)
    assert (manifests[0].fingerprint == manifests[1].fingerprint) == torch.equal(shown, stored) == (turned != 0)
    assert torch.equal(shown[0], stored[0].rot90(-1, dims=(1, 2)) if turned == 0 else stored[0])


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    """An upright, a turned and an anamorphic video, and a frame folder."""
    root = tmp_path_factory.mktemp("phone")
    write_video(root / "a.mp4", frames=8)
    write_shown(root / "b.mp4", matrix=TURNS["clockwise"][0])
    write_shown(root / "c.mkv", aspect=Fraction(16, 11))
    (root / "d").mkdir()
    for i, picture in enumerate(moving_pictures(4, 48, 112)):
        Image.fromarray(picture).save(root / "d" / f"{i}.png")
    return root


def test_the_manifest_gives_the_size_and_says_what_it_is_of(phone, monkeypatch):
    manifest = open_manifest(phone)
    sizes = [(video.width, video.height, video.geometry) for video in manifest.videos]
    assert sizes == [(112, 48, "plain"), (48, 112, "displayed"), (163, 48, "displayed"), (112, 48, "plain")]
    assert manifest == build_manifest(phone) and not manifest.notes
    monkeypatch.setattr(findings, "look_into", None)  # both are known from one look
    stored = open_manifest(phone, AS_STORED)
    assert {(video.width, video.height, video.geometry) for video in stored.videos} == {(112, 48, "stored")}
    assert stored.notes == {SHOWN_OTHERWISE: ["b.mp4", "c.mkv"]}


def test_the_fingerprint_tells_stored_from_displayed_where_they_differ(phone):
    """Where they do not, it is what it was before there was a difference."""
    manifest, stored = build_manifest(phone), build_manifest(phone, AS_STORED)
    assert manifest.fingerprint != stored.fingerprint
    rows = [[video.path, video.bytes, video.frames, video.first, video.label, video.split] for video in stored.videos]
    assert stored.fingerprint == hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    plain = [replace(each, videos=each.videos[:1]).fingerprint for each in (manifest, stored)]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("rules", [TreeRules(), AS_STORED], ids=["displayed", "stored"])
def test_every_source_gives_frames_as_the_manifest_says(phone, rules, tmp_path):
    manifest, size = build_manifest(phone, rules), (16, 24)
    cache = write(tmp_path / "cache", manifest, size=size)
    sources = [VideoFrames(phone, size, backend) for backend in BACKENDS]
    sources += [MemoryFrames(manifest, size), LatentFrames(cache)]
    for video in manifest.videos:
        frames = read_frames(phone / video.path, [2, 0], display=rules.display)
        assert tuple(frames.shape[2:]) == (video.height, video.width)
        for source in sources:
            assert torch.equal(source.read(video, [2, 0], False), resize_crop(frames, size))


def test_a_cache_of_one_kind_does_not_serve_the_other(phone, tmp_path):
    manifest, stored = build_manifest(phone), build_manifest(phone, AS_STORED)
    cache = write(tmp_path / "cache", manifest, size=(16, 24))
    cache.check(manifest, Pixels(), (16, 24), False)
    with pytest.raises(ValueError, match=r"b.mp4 is there as a player shows it, and wanted as it is stored(.|\n)*--no-display"):
        cache.check(stored, Pixels(), (16, 24), False)
    with pytest.raises(ValueError, match="holds b.mp4 as a player shows it, not as it is stored"):
        LatentFrames(cache).read(stored.videos[1], [0], False)
    again = write(tmp_path / "cache", stored, size=(16, 24))
    again.check(stored, Pixels(), (16, 24), False)
    one, other = ({name for shard in each.shards for name in shard.videos} for each in (cache, again))
    assert {video.path for video in one & other} == {"a.mp4", "d"}  # that are the same in both


def test_a_cache_of_before_holds_stored_pixels(phone, tmp_path):
    stored = build_manifest(phone, AS_STORED)
    write(tmp_path / "cache", stored, size=(16, 24))
    path = tmp_path / "cache" / "cache.json"
    values = json.loads(path.read_text())
    for shard in values["shards"]:
        shard["videos"] = [video[:4] for video in shard["videos"]]
    path.write_text(json.dumps(values))
    cache = LatentCache.open(tmp_path / "cache")
    cache.check(stored, Pixels(), (16, 24), False)
    with pytest.raises(ValueError, match="b.mp4 is there as it is stored, and wanted as a player shows it"):
        cache.check(build_manifest(phone), Pixels(), (16, 24), False)


def test_the_card_says_it_and_the_run_overrides_it(phone, tmp_path):
    card = tmp_path / "phone.yaml"
    card.write_text(f"name: phone\nroot: {phone}\nclip: {{frames: 2, stride: 1, size: [16, 24], display: false}}\n")
    assert not load_card(card).rules().display
    for options, geometry in (([], "stored"), (["data.display=true"], "displayed")):
        data = open_data(load_config(None, [f"data.card={card}", *options]))
        assert data.manifest.videos[1].geometry == geometry
        assert data.config.data.display == (geometry == "displayed")
        expected = read_frames(phone / "b.mp4", range(8), display=geometry == "displayed")
        sample = data.dataset[0, 1]
        clip = rearrange(resize_crop(expected[sample["start"] :][:2], (16, 24)), "t c h w -> c t h w")
        assert torch.equal(sample["clip"], clip) or torch.equal(sample["clip"], clip.flip(3))


def test_real_files_of_ucf101_are_shown_as_they_are_stored(real_ucf101):
    """The containers of some say 4096:4083, as near to square as they can."""
    manifest = build_manifest(real_ucf101)
    assert {(video.width, video.height, video.geometry) for video in manifest.videos} == {(320, 240, "plain")}
