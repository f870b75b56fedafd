"""A job in this process: what is refused, what is skipped, what lies on disk."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generation.sampled import CLASSES, SPEC, write_checkpoint

from sparsevid.generation import GenerationError
from sparsevid.generation.folder import ClipFolder
from sparsevid.generation.formats import clip_of_job
from sparsevid.generation.job import generate
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.stream import StageTimes, Stream
from sparsevid.videos.check import clip_file_is_whole
from sparsevid.videos.read import probe
from sparsevid.videos.sheets import GAP
from sparsevid.videos.write import FORMATS


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> VideoPipeline:
    return VideoPipeline.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint"))


@pytest.fixture
def job(pipeline, tmp_path):
    """A function that runs a job in this test's folder."""

    def call(num: int, formats: tuple[str, ...] = ("ffv1",), out: Path = tmp_path / "out", grid: bool = False, **options):
        settings = pipeline.sampling(**{"steps": 2, "batch": 2} | options)
        return generate(pipeline, settings, num, out, formats, show_progress=False, grid=grid)

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


def test_images_are_packed_as_adms_evaluator_takes_them_and_go_on_where_they_were(tmp_path):
    """Classes are balanced; an archive of as many is left as it is, and one of others is made again."""
    spec = replace(SPEC, layout="4D", sparse_grid=None, input_size=(1, 4, 6))
    pipeline = VideoPipeline.from_pretrained(write_checkpoint(tmp_path / "checkpoint", spec))
    out, path = tmp_path / "samples", tmp_path / "samples.npz"

    def job(num: int) -> None:
        generate(pipeline, pipeline.sampling(steps=2, batch=2), num, out, ("npz",), show_progress=False)

    job(6)
    images = pipeline(6, steps=2, batch=2, show_progress=False)
    with np.load(path, allow_pickle=False) as archive:
        assert np.array_equal(archive["arr_0"], images[:, :, 0].permute(0, 2, 3, 1).numpy())
        assert sorted(archive["arr_1"]) == [0, 0, 1, 1, 2, 2]
    assert sorted(each.name for each in out.glob("0*")) == [f"{index:06d}.png" for index in range(6)]
    before = path.stat().st_mtime_ns
    job(6)
    assert path.stat().st_mtime_ns == before
    (out / "000003.png").write_bytes(b"")
    job(6)
    job(7)
    with np.load(path, allow_pickle=False) as archive:
        assert archive["arr_0"].shape == (7, 16, 24, 3)
        assert np.array_equal(archive["arr_0"][:6], images[:, :, 0].permute(0, 2, 3, 1).numpy())


def test_a_png_is_not_made_of_a_video(job):
    with pytest.raises(ValueError, match="clips of 4 frames, a PNG file is one image"):
        job(1, ("png",))


@pytest.mark.parametrize("fps", [8, 60, 95, 100])
def test_frames_read_from_a_gif_are_those_of_the_clip(tmp_path, fps):
    """Each frame has a grey of its own, but some equal the one before, which a GIF keeps as one."""
    greys = torch.tensor([0, 20, 20, 60, 80, 80, 80, 140, 160, 180], dtype=torch.uint8)
    clip = greys.view(1, -1, 1, 1).expand(3, -1, 16, 24)
    folder = ClipFolder(tmp_path, ("gif",), (len(greys), 16, 24), fps)
    folder.write(0, clip, ("gif",))
    assert torch.equal(folder.read(0), clip)


def test_what_is_there_is_not_made_again(job, tmp_path):
    assert job(3).written == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mkv")}
    (tmp_path / "out" / "000001.mkv").write_bytes(b"no video")
    report = job(4)
    assert (report.clips, report.written) == (4, 2)
    kept = tmp_path / "out" / "000002.mkv"
    assert kept.stat().st_mtime_ns == before[kept]
    assert (report.times.model > 0, job(2).times.model) == (True, 0.0)


def test_a_smaller_number_later_leaves_sheet_and_count_of_the_whole(job, tmp_path):
    job(4)
    sheet = (tmp_path / "out" / "contact_sheet.png").read_bytes()
    report = job(1)
    assert (report.clips, report.written, report.there) == (1, 0, 4)
    assert (tmp_path / "out" / "contact_sheet.png").read_bytes() == sheet
    (tmp_path / "out" / "000003.mkv").unlink()
    assert job(1).there == 3


def test_versions_are_noted_when_clips_are_written(job, tmp_path):
    job(2)
    path = tmp_path / "out" / "samples.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    (now,) = record["made_with"]
    old = now | {"torch": "1.0"}
    path.write_text(json.dumps(record | {"made_with": [old]}), encoding="utf-8")
    for num, expected in ((2, [old]), (3, [old, now]), (4, [old, now])):
        job(num)
        assert json.loads(path.read_text(encoding="utf-8"))["made_with"] == expected


def test_the_record_says_of_what_clips_the_samples_are(pipeline, job, tmp_path, monkeypatch):
    """For who scores them; a folder of before, which does not say it, is gone on with."""
    monkeypatch.setattr(pipeline.config.data, "stride", 3)
    job(1)
    frames = probe(tmp_path / "out" / "000000.mkv").frames
    assert clip_of_job(tmp_path / "out") == (frames, 3)
    monkeypatch.setattr(pipeline.config.data, "target_fps", 5.0)  # frames of a clip are not every third of a video then
    job(1, out=tmp_path / "other")
    assert clip_of_job(tmp_path / "other") == (frames, None)
    path = tmp_path / "out" / "samples.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "clip"}), encoding="utf-8")
    assert job(2).there == 2 and clip_of_job(tmp_path / "out") is None


def test_leftovers_of_a_killed_job_are_removed(job, tmp_path):
    job(1)
    whole = {path.name for path in (tmp_path / "out").iterdir()}
    for name in ("000001.mkv", "contact_sheet.png", "samples.json"):
        (tmp_path / "out" / f".{name}.0123abcd.partial").write_bytes(b"")
    (tmp_path / "out" / ".000002.replaced").mkdir()
    job(1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == whole


def test_the_grid_lies_beside_the_folder(pipeline, tmp_path):
    generate(pipeline, pipeline.sampling(steps=1, batch=2), 2, tmp_path / "out", show_progress=False, grid=True)
    assert clip_file_is_whole(tmp_path / "out-grid.mp4", "mp4", 4, 2 * 16, 2 * 2 * 24 + GAP)


def test_unfinished_grids_of_a_killed_job_are_removed(job, tmp_path):
    own, foreign = (tmp_path / f".{name}-grid.mp4.0123abcd.partial" for name in ("out", "other"))
    for path in (own, foreign):
        path.write_bytes(b"")
    job(1, grid=True)
    assert foreign.exists() and not own.exists()


@pytest.mark.parametrize("place", ["out", "/proc/self/cwd"])
def test_a_grid_that_cannot_be_written_is_refused_before_any_work(job, tmp_path, monkeypatch, place):
    """A folder has its name; or nobody can write beside the clips' folder, not even root."""
    monkeypatch.chdir(tmp_path)
    if not Path(place).parent.exists():
        pytest.skip("this system has no /proc")
    (tmp_path / "out-grid.mp4").mkdir()
    with pytest.raises(GenerationError, match=rf"the grid \S*{Path(place).name}-grid.mp4 cannot be written"):
        job(1, out=Path(place), grid=True)
    assert not list(tmp_path.rglob("*.mkv"))


def test_clips_of_unknown_origin_are_refused_in_the_folders_of_formats_too(job, tmp_path):
    formats = ("ffv1", "mp4")
    (tmp_path / "out" / "ffv1").mkdir(parents=True)
    (tmp_path / "out" / "ffv1" / "000000.mkv").write_bytes(b"of someone else")
    with pytest.raises(GenerationError, match="holds ffv1/000000.mkv and no samples.json"):
        job(1, formats)
    job(1, ("ffv1",), out=tmp_path / "other" / "ffv1")
    with pytest.raises(GenerationError, match="other/ffv1 is the folder of a job of its own"):
        job(1, formats, out=tmp_path / "other")


def test_a_file_browsers_file_does_not_damage_a_folder_of_frames(job, tmp_path):
    """A clip beside it is whole; a folder that is not whole is made again, unless something foreign would go with it."""
    job(2, ("frames",))
    foreign = tmp_path / "out" / "000000" / ".DS_Store"
    foreign.write_bytes(b"")
    assert job(2, ("frames",)).written == 0
    (tmp_path / "out" / "000000" / "000001.png").unlink()
    with pytest.raises(GenerationError, match="clip 0 could not be written to .*: .*000000 holds .DS_Store"):
        job(2, ("frames",))
    assert foreign.exists()
    foreign.unlink()
    assert job(2, ("frames",)).written == 1


def test_weights_that_were_removed_after_loading_are_named(pipeline, tmp_path):
    shutil.copytree(pipeline.weights_file.parents[1], tmp_path / "checkpoint")
    loaded = VideoPipeline.from_pretrained(tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoint")
    with pytest.raises(GenerationError, match="model's files cannot be read again.*No such file.*checkpoint"):
        generate(loaded, loaded.sampling(steps=1), 1, tmp_path / "out", show_progress=False)


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


def test_float32_of_another_meaning_is_another_job(job, pipeline, tmp_path):
    """Exact is what jobs of before say nothing of; TF32 is a setting like the others, and holds for one pipeline."""
    job(1)
    assert "tf32" not in json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))["settings"]
    rounded = VideoPipeline.from_pretrained(pipeline.weights_file.parents[1], tf32=True)
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(GenerationError, match="tf32 is .* there and True here"):
        generate(rounded, rounded.sampling(steps=2, batch=2), 1, tmp_path / "out", ("ffv1",), show_progress=False)
    VideoPipeline.from_pretrained(pipeline.weights_file.parents[1])
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_another_schedule_or_objective_in_the_config_is_refused(job, pipeline, tmp_path):
    """The settings name a schedule; the config beside the weights says what it is."""
    job(1)
    changed = tmp_path / "changed"
    shutil.copytree(pipeline.weights_file.parents[1], changed)
    text = (changed / "config.yaml").read_text(encoding="utf-8")
    assert "r_max: 0.8" in text
    (changed / "config.yaml").write_text(text.replace("r_max: 0.8", "r_max: 0.6"), encoding="utf-8")
    other = VideoPipeline.from_pretrained(changed)
    with pytest.raises(GenerationError, match="settings: stages is "):
        generate(other, other.sampling(steps=2, batch=2), 1, tmp_path / "out", ("ffv1",), show_progress=False)
    record = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))
    assert record["settings"]["objective"] == "diffusion"


def test_samples_that_are_not_finite_are_refused(pipeline, tmp_path):
    broken = VideoPipeline.from_pretrained(pipeline.weights_file.parents[1])
    next(broken.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(GenerationError, match="samples 0, 1 are not finite"):
        generate(broken, broken.sampling(steps=2, batch=2), 2, tmp_path / "out", show_progress=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"samples.json"}


def test_a_rate_that_no_gif_has_is_refused_before_any_work(pipeline, tmp_path):
    fast = VideoPipeline.from_pretrained(pipeline.weights_file.parents[1])
    fast.config.record.fps = 120.0
    with pytest.raises(ValueError, match="120 frames a second, a GIF shows at most 100"):
        generate(fast, fast.sampling(steps=2), 1, tmp_path / "out", ("mp4", "gif"), show_progress=False)
    assert not (tmp_path / "out").exists()


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
        pytest.raises(PermissionError, match="/nowhere"),
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


@pytest.mark.gpu
def test_compiled_bfloat16_files_are_near_those_of_the_eager_model(pipeline, tmp_path):
    clips = {}
    for compiled in (False, True):
        made = VideoPipeline.from_pretrained(
            pipeline.weights_file.parents[1], device="cuda", dtype="bfloat16", compile=compiled
        )
        settings = made.sampling(steps=4, batch=2, guidance=2.0, savings=["steps:every=2"])
        out = tmp_path / str(compiled)
        generate(made, settings, 3, out, ("ffv1",), show_progress=False)
        folder = ClipFolder(out, ("ffv1",), (4, 16, 24), made.fps)
        clips[compiled] = torch.stack([folder.read(index) for index in range(3)]).float()
    assert (clips[True] - clips[False]).abs().mean() < 5  # of 255 levels
    assert (clips[True] - clips[True].roll(1, 0)).abs().mean() > 5  # each is a clip of its own
