"""A job in this process: what is refused, what is skipped, what lies on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generation.sampled import CLASSES, write_checkpoint

from sparsevid.generation import GenerationError
from sparsevid.generation.folder import ClipFolder
from sparsevid.generation.job import generate
from sparsevid.generation.stream import StageTimes, Stream
from sparsevid.pipeline import VideoPipeline
from sparsevid.video import FORMATS


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> VideoPipeline:
    return VideoPipeline.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint"))


@pytest.fixture
def job(pipeline, tmp_path):
    """A function that runs a job in this test's folder."""

    def call(num: int, formats: tuple[str, ...] = ("ffv1",), out: Path = tmp_path / "out", **options):
        settings = pipeline.sampling(**{"steps": 2, "batch": 2} | options)
        return generate(pipeline, settings, num, out, formats, show_progress=False)

    return call


def test_files_hold_the_clips_that_the_pipeline_gives(pipeline, job, tmp_path):
    """The last batch is padded, so the pipeline is asked for a whole one."""
    job(3, tuple(FORMATS))
    clips = pipeline(4, steps=2, batch=2, show_progress=False)
    for format in ("ffv1", "npz", "frames"):
        folder = ClipFolder(tmp_path / "out", (format, "gif"), (4, 16, 24), pipeline.fps)
        assert all(torch.equal(folder.read(index), clips[index]) for index in range(3)), format
    gif = ClipFolder(tmp_path / "out" / "gif", ("gif",), (4, 16, 24), pipeline.fps)
    assert gif.read(2).shape == (3, 4, 16, 24)


def test_what_is_there_is_not_made_again(job, tmp_path):
    assert job(3).written == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mkv")}
    (tmp_path / "out" / "000001.mkv").write_bytes(b"no video")
    report = job(4)
    assert (report.clips, report.written) == (4, 2)
    kept = tmp_path / "out" / "000002.mkv"
    assert kept.stat().st_mtime_ns == before[kept]
    assert (report.times.model > 0, job(2).times.model) == (True, 0.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"steps": 3}, "steps is 2 there and 3 here"),
        ({"batch": 4}, "batch is 2 there and 4 here"),
        ({"guidance": 2.0}, r"guidance is 1.0 there and 2.0 here"),
        ({"classes": ["run"]}, "classes is .*'jump'.* there and .'run'. here"),
        ({"schedule": "off"}, "schedule is 'paper' there and 'off' here"),
        ({"formats": ("mp4",)}, "formats is .*ffv1.* there and .*mp4.* here"),
    ],
)
def test_another_job_in_the_same_folder_is_refused(change, named, job):
    job(1)
    with pytest.raises(GenerationError, match=named):
        job(1, **change)


def test_another_checkpoint_is_refused(job, pipeline, tmp_path):
    job(1)
    raw = VideoPipeline.from_pretrained(pipeline.weights_file.parents[1], weights="model")
    with pytest.raises(GenerationError, match="checkpoint is "):
        generate(raw, raw.sampling(steps=2, batch=2), 1, tmp_path / "out", ("ffv1",), show_progress=False)


def test_a_folder_that_cannot_be_used_is_refused_before_any_work(job, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GenerationError, match="cannot be written"):
        job(1, out=tmp_path / "file" / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "000000.mkv").write_bytes(b"of someone else")
    with pytest.raises(GenerationError, match="no samples.json"):
        job(1)
    (tmp_path / "out" / "samples.json").write_text("[]")
    with pytest.raises(GenerationError, match="not a record"):
        job(1)
    for formats in ((), ("avi",), ("mp4", "mp4")):
        with pytest.raises(ValueError, match="accepted are one or more of ffv1"):
            job(1, formats)


def test_an_error_in_a_thread_is_raised_and_stops_the_rest():
    done = []

    def write(index: int, clip: torch.Tensor) -> None:
        if index == 3:
            raise PermissionError(13, "Permission denied", "/nowhere")
        done.append(index)

    latents = torch.zeros(2, 1, 1, 1, 1)
    with (
        pytest.raises(GenerationError, match=r"Permission denied \(/nowhere\)"),
        Stream(lambda latent: latent, write, StageTimes(), writers=1) as stream,
    ):
        for batch in range(50):
            stream.put([2 * batch, 2 * batch + 1], latents)
    assert done == [0, 1, 2]


def test_stages_are_timed_and_files_counted():
    times, written = StageTimes(), []
    with Stream(lambda latent: latent, lambda index, clip: None, times, lambda: written.append(1)) as stream:
        stream.put([5, 6, 9], torch.zeros(3, 1, 1, 1, 1))
    assert len(written) == 3 and times.decode > 0 and times.write > 0 and times.model == 0


def test_the_record_says_which_class_each_clip_is_of(job, tmp_path):
    job(2, classes=["jump", 0])
    settings = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))["settings"]
    assert settings["classes"] == ["jump", CLASSES[0]]


def test_a_model_that_was_not_loaded_has_no_record(pipeline, tmp_path):
    bare = VideoPipeline(pipeline.model, pipeline.autoencoder, pipeline.config, pipeline.schedule)
    with pytest.raises(GenerationError, match="from_pretrained"):
        generate(bare, replace(bare.sampling(), steps=1), 1, tmp_path / "out", show_progress=False)
