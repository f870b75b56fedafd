"""Every sample of a source counts once, whatever it is kept in, and what cannot be used is told."""

import dataclasses
import json
import logging

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.protocols import load_protocol
from sparsevid.generation.folder import ClipFolder, JobRecord
from sparsevid.videos.write import write_clip, write_ffv1, write_frames, write_gif, write_mp4

DEMO, FID = "sparsevid/fd-transnetv2-v1", "sparsevid/fid-v1"


def small(name: str, **changes):
    return dataclasses.replace(load_protocol(name), **{"size": None, "fake_count": None} | changes)


def noise(seed: int, frames: int = 9, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (3, frames, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write_mpg(path, clip):
    with av.open(str(path), "w", format="mpeg") as output:
        stream = output.add_stream("mpeg1video", rate=25)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[2:], "yuv420p"
        for frame in clip.permute(1, 2, 3, 0).numpy():
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame.copy(), format="rgb24")))
        output.mux(stream.encode(None))


def write_webp(path, clip):
    first, *others = (Image.fromarray(frame) for frame in clip.permute(1, 2, 3, 0).numpy())
    first.save(path, save_all=True, append_images=others, duration=40)


OTHER = {".mpg": write_mpg, ".webp": write_webp, ".gif": lambda path, clip: write_gif(path, clip, 8)}


@pytest.mark.parametrize("extension", OTHER)
def test_a_mixed_set_counts_all_its_samples(tmp_path, extension):
    for i in range(3):
        write_mp4(tmp_path / f"{i}.mp4", noise(i), 8)
        OTHER[extension](tmp_path / f"{i + 3}{extension}", noise(i))
    clips = choose_clips(tmp_path, "fake", small(DEMO))
    assert len(clips) == len(list(clips)) == 6 and clips.origin["formats"] == {".mp4": 3, extension: 3}
    for i in range(3, 6):
        (tmp_path / f"{i}{extension}").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="3 of the generated videos in .* cannot be used, such as '3.*all are to be scored"):
        choose_clips(tmp_path, "fake", small(DEMO))
    assert sum(choose_clips(tmp_path, "fake", small(DEMO, fake_count=3)).origin["rejected"].values()) == 3


def test_arrays_in_another_layout_are_no_samples_that_vanish(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", noise(i).permute(1, 2, 3, 0).numpy())
        np.save(tmp_path / f"{i + 3}.npy", noise(i)[None].numpy())  # (N,C,T,H,W)
    np.save(tmp_path / "labels.npy", np.arange(6))
    with pytest.raises(ValueError, match=r"3 of the generated videos .* '3.npy': an array uint8 \(1, 3, 9, 16, 16\); accepted"):
        choose_clips(tmp_path, "fake", small(DEMO))
    clips = choose_clips(tmp_path, "fake", small(DEMO, fake_count=3))
    assert ["3 of the generated videos" in text for text in clips.origin["warnings"]] == [True]
    assert list(clips.origin["rejected"].values()) == [3]


@pytest.mark.parametrize(
    ("formats", "chosen"), [(("mp4", "ffv1"), "ffv1"), (("gif", "mp4"), "mp4"), (("mp4", "frames"), "frames")]
)
def test_a_job_in_several_formats_is_scored_once_each_sample(tmp_path, caplog, formats, chosen):
    record = JobRecord(6, {"formats": list(formats)}, [{"torch": "2"}])
    folder = ClipFolder(tmp_path / "out", formats, (9, 16, 16), 8)
    folder.begin(record)
    for i in range(6):
        folder.write(i, noise(i), formats)
    caplog.set_level(logging.INFO)
    clips = choose_clips(tmp_path / "out", "fake", small(DEMO))
    assert len(clips) == 6 and clips.origin["root"] == str(tmp_path / "out" / chosen)
    assert f"clips in several formats: those in {chosen} are taken" in caplog.text
    direct = choose_clips(tmp_path / "out" / chosen, "fake", small(DEMO))
    assert (clips.ids, clips.fingerprint) == (direct.ids, direct.fingerprint)
    if chosen != "mp4":
        assert all(torch.equal(clip, noise(i)[:, :8]) for i, (_, clip) in enumerate(clips))


def test_any_other_folder_with_a_record_is_read_as_it_is(tmp_path):
    for name, content in {"list": [], "text": "mp4", "numbers": {"settings": {"formats": 7}}}.items():
        for i in range(2):
            (tmp_path / name / str(i)).mkdir(parents=True)
            write_clip(tmp_path / name / str(i) / "a", noise(i), 8, "mp4")
        (tmp_path / name / "samples.json").write_text(json.dumps(content))
        assert choose_clips(tmp_path / name, "fake", small(DEMO)).ids == ("0/a.mp4@0", "1/a.mp4@0")


def test_files_of_one_name_are_told(tmp_path):
    for i in range(2):
        write_mp4(tmp_path / f"{i}.mp4", noise(i), 8)
        write_ffv1(tmp_path / f"{i}.mkv", noise(i), 8)
    (warning, _) = choose_clips(tmp_path, "fake", small(DEMO, lossless=True)).origin["warnings"][::-1]
    assert "4 videos share folder and name with another, such as '0.mkv': each is one more clip" in warning


def test_a_flat_folder_of_images_is_one_video_or_a_set_of_images_as_the_protocol_says(tmp_path):
    write_frames(tmp_path / "flat", noise(0, frames=12))
    with pytest.raises(
        ValueError, match="needs at least 2, got 1 .*images that lie directly in it are the frames of one video"
    ):
        choose_clips(tmp_path / "flat", "fake", small(DEMO))
    images = choose_clips(tmp_path / "flat", "fake", small(FID))
    assert images.ids == tuple(f"{i:06d}.png@0" for i in range(12)) and images.origin["formats"] == {".png": 12}
    for i, (_, clip) in enumerate(images):
        assert torch.equal(clip, noise(0, frames=12)[:, i : i + 1])
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "flat" / "other size.png")
    assert len(choose_clips(tmp_path / "flat", "real", small(FID, size=(8, 8)))) == 13
    for i in range(2):
        write_frames(tmp_path / "deep" / str(i), noise(i))
    assert len(choose_clips(tmp_path / "deep", "fake", small(DEMO))) == 2
    assert len(choose_clips(tmp_path / "deep", "fake", small(FID))) == 18
