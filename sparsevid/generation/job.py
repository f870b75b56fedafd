"""A job: which batch is whose, what is there already, and the exact count at the end.

Batch b holds samples b·B … (b+1)·B − 1 and belongs to rank b mod R, of R ranks. The last batch is denoised whole, too, and what
was not asked for is dropped; likewise a batch of which some files are there. So no sample depends on R, on the number of
samples, or on an interruption.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from sparsevid.generation import GenerationError
from sparsevid.generation.folder import ClipFolder, JobRecord, make_record
from sparsevid.generation.formats import RECORD
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.sampling import Sampling
from sparsevid.generation.stream import StageTimes, Stream
from sparsevid.savings.tally import Tally
from sparsevid.system.distributed import from_main, gather_objects, is_main, peers_may_die, rank, world_size
from sparsevid.system.errors import told
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.shared import check_shared
from sparsevid.system.threads import thread_pool
from sparsevid.videos.read import DecodeError

WRITERS = 4  # threads of each rank that write files
Result = TypeVar("Result")
logger = get_logger(__name__)


@dataclass(frozen=True)
class JobReport:
    """What a job did, over all ranks.

    Attributes:
        clips: that were asked for, all of which are there now.
        written: of these, clips of which this job wrote a file.
        there: clips in the folder; more than `clips` if an earlier job was asked for more.
        times: of this rank.
        share: of the layers, by their attentions and MLPs, what savings left to this rank; None: without a saving, or no call.
    """

    clips: int
    written: int
    there: int
    times: StageTimes
    share: float | None


@peers_may_die("generating clips")
def generate(
    pipeline: VideoPipeline,
    sampling: Sampling,
    num: int,
    out: str | Path,
    formats: tuple[str, ...] = ("mp4",),
    *,
    writers: int = WRITERS,
    show_progress: bool = True,
    grid: bool = False,
    sheet: bool = True,
) -> JobReport:
    """Generate samples 0 … num − 1 as files, but for those that are there. All ranks call it together.

    Args:
        pipeline: out of `from_pretrained`, the same on all ranks.
        sampling: settings out of `pipeline.sampling`.
        num: clips in all; may be more than an earlier job in the same folder was asked for.
        out: the folder, which all ranks see.
        formats: one or more of `EVERY_FORMAT`. Of a model of images, `npz` is one archive of all of them beside the folder, as
            ADM's evaluator takes it, and the images are kept as `png`.
        writers: threads that write, on each rank.
        show_progress: bars of denoising and of writing, with what remains, on rank 0.
        grid: write the clips of the contact sheet as one video, too, beside the folder.
        sheet: write the contact sheet; without it no grid either.

    Raises:
        ValueError: no clip, an unknown format, or a rate that a format cannot have.
        GenerationError: a folder of other settings, that cannot be written, that another process fills, or that is not the
            same on all hosts, a pipeline that was not loaded, ranks whose
            models or settings differ, samples that are not finite, or clips that are missing at the end.
        RankError: another rank ended; the message says which and why.
    """
    if num < 1:
        raise ValueError(f"num is at least 1, got {num}")
    size = pipeline.autoencoder.clip_size(sampling.input_size)
    packs = size[0] == 1 and "npz" in formats
    if packs:
        formats = tuple(dict.fromkeys("png" if each == "npz" else each for each in formats))
    folder = ClipFolder(Path(out), formats, size, pipeline.fps)
    if is_main():
        pipeline.warn_of_size(sampling)
    record = _common_record(pipeline, sampling, num, formats)
    try:
        most = _on_main(folder, lambda: folder.begin(record, grid=grid).num)
        check_shared(folder.path, GenerationError)
        missing = _find_missing(folder, sampling.batch, num, writers, show_progress)
        written = sum(gather_objects(len(missing)))
        if written < num:
            logger.info("%d of %d clips are there already", num - written, num)  # rank 0 says it
        if written:
            _on_main(folder, lambda: folder.add_maker(record))
        batches = _batches(sampling, missing)
        pipeline.encode_prompts(sampling, [index for batch in batches for index in batch])
        if missing and (pipeline.compiled or pipeline.device.type == "cuda"):
            pipeline.warm_up(sampling, batches[0])
        tally = Tally()
        times = _run(pipeline, sampling, folder, missing, batches, writers, show_progress, tally if sampling.savings else None)
        absent = _absent(folder, sampling.batch, num, most)
        if packs:
            labels = [label for index in range(num) if (label := sampling.label(index)) is not None]
            logger.info("%s", _on_main(folder, lambda: folder.pack(num, labels or None, fresh=written > 0)))
        if sheet:
            _on_main(folder, lambda: folder.write_sheet(most, sampling, pipeline.classes, grid=grid))
    finally:
        folder.end()
    return JobReport(num, written, most - len(absent), times, tally.share if tally.asked else None)


def _absent(folder: ClipFolder, batch: int, num: int, most: int) -> list[int]:
    """Which of `most` clips are not there, over all ranks, which raise GenerationError if one of the first `num` is not."""
    mine = [index for index in _my_clips(batch, most) if not folder.exists(index)]
    absent = sorted(index for each in gather_objects(mine) for index in each)
    if lost := [index for index in absent if index < num]:
        shown = ", ".join(map(str, lost[:10]))
        raise GenerationError(
            f"{len(lost)} of {num} clips are not in {folder.path} after all: {shown}{' …' if lost[10:] else ''}"
        )
    return absent


def _common_record(pipeline: VideoPipeline, sampling: Sampling, num: int, formats: tuple[str, ...]) -> JobRecord:
    """The record of the job, which is that of every rank. If a rank has none, or another, all raise what is wrong."""
    record, failure = None, ""
    try:
        record = make_record(pipeline, sampling, num, formats)
    except (ValueError, GenerationError) as error:
        failure = str(error)
    except OSError as error:
        failure = f"the model's files cannot be read again, for {RECORD} (were they removed since it was loaded?): {error}"
    told = gather_objects((record, failure))
    if failures := [f"rank {number}: {each}" for number, (_, each) in enumerate(told) if each]:
        raise GenerationError(failures[0] if world_size() > 1 else failure)
    assert record is not None
    jobs = [{"num": each.num, **each.settings} for each, _ in told]
    for number, job in enumerate(jobs):
        if differing := [key for key in job if job[key] != jobs[0][key]]:
            shown = ", ".join(f"{key} is {jobs[0][key]!r} on rank 0 and {job[key]!r} on rank {number}" for key in differing)
            raise GenerationError(f"the ranks do not have the same job: {shown}")
    if makers := [each.made_with[0] for each, _ in told if each.made_with != record.made_with]:
        logger.warning("ranks make clips with %s and with %s: last bits may differ", record.made_with[0], makers[0])
    return told[0][0]


def _run(
    pipeline: VideoPipeline,
    sampling: Sampling,
    folder: ClipFolder,
    missing: dict[int, tuple[str, ...]],
    batches: list[list[int]],
    writers: int,
    show_progress: bool,
    tally: Tally | None,
) -> StageTimes:
    """Denoise the batches of the missing clips one after the other, and leave the rest to the background."""
    times = StageTimes()
    steps = _bar(show_progress, total=len(batches) * sampling.steps, desc="denoise", unit="step", position=0)
    files = _bar(show_progress, total=len(missing), desc="decode and write", unit="clip", position=1)

    def write(index: int, clip: torch.Tensor) -> None:
        folder.write(index, clip, missing[index], sampling.prompt(index))

    with steps, files, times.measured("total"), Stream(pipeline.decode, write, times, files.update, writers) as stream:

        def on_step(*_: object) -> None:
            stream.check()
            steps.update()

        for indices, noise in zip(batches, pipeline.noises(batches, sampling), strict=True):
            wanted = [position for position, index in enumerate(indices) if index in missing]
            with times.measured("model"):
                latents = pipeline.denoise(indices, sampling, on_step, noise, tally=tally)[wanted]
                if latents.is_cuda:
                    torch.cuda.current_stream(latents.device).synchronize()
            stream.put([indices[position] for position in wanted], latents)
    return times


def _batches(sampling: Sampling, missing: Iterable[int]) -> list[list[int]]:
    """Samples of the batches, whole ones, to which missing clips belong."""
    numbers = sorted({index // sampling.batch for index in missing})
    return [list(range(number * sampling.batch, (number + 1) * sampling.batch)) for number in numbers]


def _find_missing(folder: ClipFolder, batch: int, num: int, writers: int, show_progress: bool) -> dict[int, tuple[str, ...]]:
    """This rank's clips of which files are missing or damaged: index → formats."""
    mine = _my_clips(batch, num)
    there = any(folder.exists(index) for index in mine)
    with thread_pool(writers) as pool:
        found = pool.map(folder.missing, mine)
        bar = _bar(show_progress and there, iterable=found, total=len(mine), desc="check files", unit="clip")
        return {index: formats for index, formats in zip(mine, bar, strict=True) if formats}


def _bar(shown: bool, **options: Any) -> tqdm:
    return progress(**options) if shown else tqdm(options.get("iterable"), disable=True)


def _my_clips(batch: int, num: int) -> list[int]:
    """Samples of this rank's batches, of `num` in all."""
    return [index for index in range(num) if index // batch % world_size() == rank()]


def _on_main(folder: ClipFolder, action: Callable[[], Result]) -> Result:
    """Let rank 0 do what is done once, and give its result to all; if it cannot, all ranks raise its reason."""

    def attempt() -> Result:
        try:
            return action()
        except (GenerationError, DecodeError, ValueError, OSError) as error:
            text = f"{folder.path} cannot be written: {told(error)}" if isinstance(error, OSError) else str(error)
            raise GenerationError(text) from error

    return from_main(attempt, (GenerationError,))
