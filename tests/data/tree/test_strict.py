"""Strict is about damage: sound files and trees that real sets hold pass it, and what is damaged does not."""

from fractions import Fraction

import av
import pytest
from data.trees import plant_frames, plant_video
from videos.made import sequential, write_video

from sparsevid.data.tree.cards import load_card, resolve_root
from sparsevid.data.tree.manifest import ALL, build_manifest
from sparsevid.data.tree.probing import CUT_SHORT
from sparsevid.data.tree.rules import TreeRules
from sparsevid.videos.read import DecodeError, probe, read_frames

NOT_CODED = b"\x00\x00\x01\xb6\x5c\x4f"  # as in v_Kayaking_g12_c03 of UCF101: a frame of MPEG-4 that equals the one before


def write_with_empty_packets(path, at=(11, 12, 25), placeholder=NOT_CODED):
    """Thirty packets of MPEG-4, some of which hold no frame: placeholders, or in AVI, without one, packets of no bytes."""
    with av.open(str(write_video(path.with_name("plain.avi"), "mpeg4", frames=30))) as source:
        packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        keys = [packet.is_keyframe for packet in av.open(str(path.with_name("plain.avi"))).demux(video=0) if packet.size]
        with av.open(str(path), "w") as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            for time, content in enumerate(packets):
                if time in at and placeholder is None:
                    continue  # FFmpeg fills the gap with a packet of no bytes
                packet = av.Packet(placeholder if time in at else content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), keys[time] and time not in at
                packet.pts = packet.dts = time
                packet.duration = 1  # without one, some versions of PyAV write an end that cuts the last frame away
                container.mux(packet)
    path.with_name("plain.avi").unlink()
    return path


@pytest.mark.parametrize(("name", "placeholder"), [("v.avi", NOT_CODED), ("v.mp4", NOT_CODED), ("v.avi", None)])
def test_packets_that_decode_to_nothing_are_no_damage(tmp_path, name, placeholder):
    path = write_with_empty_packets(tmp_path / name, placeholder=placeholder)
    info = probe(path)
    assert info.frames == info.header_frames == len(sequential(path)) == 27
    assert (read_frames(path, [20])[0].permute(1, 2, 0).numpy() == sequential(path)[20]).all()
    for full_scan in (False, True):
        manifest = build_manifest(tmp_path, strict=True, full_scan=full_scan)
        assert CUT_SHORT not in manifest.notes
        assert manifest.notes["packets without a frame" if placeholder else "variable frame rate"] == [name]


def test_damage_of_a_file_with_empty_packets_is_still_found(tmp_path):
    path = write_with_empty_packets(tmp_path / "v.avi")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])
    info = probe(path)
    assert 12 < info.frames < info.header_frames
    with pytest.raises(DecodeError, match=CUT_SHORT):
        build_manifest(tmp_path, strict=True)


def test_what_lies_beside_sound_videos_is_no_damage(tmp_path):
    """Genuine SkyTimelapse has empty folders; previews and thumbnails lie beside videos."""
    for name in ("a", "b"):
        plant_video(tmp_path / f"{name}.mp4")
    plant_frames(tmp_path, ["thumbnail.png"])
    plant_frames(tmp_path / "frames", ["1.png", "2.png", "3.png"])
    write_video(tmp_path / "frames" / "preview.gif", "gif", pixels="rgb8", frames=3)
    (tmp_path / "empty").mkdir()
    manifest = build_manifest(tmp_path, strict=True)
    assert {video.path for video in manifest.videos} == {"a.mp4", "b.mp4", "frames"}
    assert set(manifest.rejects) == {"image beside videos", "GIF beside more images", "empty folder"}


@pytest.mark.parametrize("damage", ["link", "empty", "class"])
def test_a_video_that_cannot_be_used_is_refused(tmp_path, damage):
    plant_video(tmp_path / "class" / "good.mp4")
    if damage == "link":
        (tmp_path / "class" / "bad.mp4").symlink_to(tmp_path / "nowhere.mp4")
    elif damage == "empty":
        (tmp_path / "class" / "bad.mp4").touch()
    else:
        plant_video(tmp_path / "bad.mp4")
    with pytest.raises(DecodeError, match=r"bad\.mp4"):
        build_manifest(tmp_path, TreeRules("folder"), strict=True)


def test_real_files_of_ucf101_pass(real_ucf101):
    card = load_card("ucf101", ["split.max_missing=1"])
    manifest = build_manifest(resolve_root(card, real_ucf101), card.rules(), strict=True)
    assert len(manifest.select(ALL).videos) > 100 and set(manifest.splits) == {"train", "test"}
    assert [path for path in manifest.notes["packets without a frame"] if "v_Kayaking_g12_c03" in path]
    assert {round(video.fps, 2) for video in manifest.videos} == {25.0, 29.97}
