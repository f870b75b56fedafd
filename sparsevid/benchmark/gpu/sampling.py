"""Clips from noise to files: model, decoder and writing, eager and as graphs, dense and sparse, with random weights.

Dimensions: B clips of a batch, T frames.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from sparsevid.autoencoder.kl import KLAutoencoder
from sparsevid.benchmark.gpu.machine import candidates, first_line, open_device
from sparsevid.benchmark.gpu.parts import SKIPPED, Row, Settings
from sparsevid.benchmark.sampling import SamplingRun, random_pipelines
from sparsevid.benchmark.sampling_cases import SamplingCase, plan_sampling
from sparsevid.benchmark.timing import time_turn
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.videos.check import clip_file_is_whole
from sparsevid.videos.write import clip_path

CLIPS, TINY_CLIPS = 32, 4
BATCH, TINY_BATCH = 16, 2
STEPS, TINY_STEPS = 20, 2
SAMPLER, FORMAT = "ddim", "ffv1"
# Of stabilityai/sd-vae-ft-ema.
CHANNELS, TINY_CHANNELS = (128, 256, 512, 512), (8, 8, 8, 8)
GROUPS, TINY_GROUPS = 32, 4
SCALING = 0.18215


def rows(settings: Settings) -> Iterator[Row]:
    """Seconds of each part of the way, and whether all files are whole; the sparse model first, which is the faster."""
    device = open_device(settings)
    steps, batch = (TINY_STEPS, TINY_BATCH) if settings.tiny else (STEPS, BATCH)
    cases = plan_sampling(list(candidates(settings)), samplers=[SAMPLER], steps=[steps], batches=[batch], dtypes=["bfloat16"])
    pipelines = random_pipelines([case.network for case in cases], autoencoder(settings), device)
    took = 0.0
    for case in sorted(cases, key=lambda case: not case.network.spec.is_sparse):
        for mode in ("graph", "eager"):
            name = f"{case.preset}, {mode}"
            if mode == "graph" and device.type != "cuda":
                yield Row(name, SKIPPED, note="only on a GPU")
                continue
            if not settings.fits(took):
                yield Row(name, SKIPPED, note=f"no time left: the last case took {took:.0f} s")
                continue
            before = settings.left
            try:
                yield from sample(settings, name, case, _in_mode(pipelines[case.network], mode))
            except torch.OutOfMemoryError as error:
                yield Row(name, SKIPPED, note=first_line(error))
                torch.cuda.empty_cache()
            took = before - settings.left


def autoencoder(settings: Settings) -> KLAutoencoder:
    """An `AutoencoderKL` of the sizes that latents of 256² clips come from, with random weights: nothing is downloaded."""
    channels, groups = (TINY_CHANNELS, TINY_GROUPS) if settings.tiny else (CHANNELS, GROUPS)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1 if settings.tiny else 2,
        norm_num_groups=groups,
        latent_channels=4,
        scaling_factor=SCALING,
    )
    return KLAutoencoder(vae, "random weights")


def _in_mode(pipeline: VideoPipeline, mode: str) -> VideoPipeline:
    """The pipeline, or one of the same parts that replays no graphs."""
    if mode == "graph":
        return pipeline
    return VideoPipeline(pipeline.model, pipeline.autoencoder, pipeline.config, pipeline.schedule, graph=False)


def sample(settings: Settings, name: str, case: SamplingCase, pipeline: VideoPipeline) -> Iterator[Row]:
    """All clips, batch by batch, after a warm-up."""
    run, count = SamplingRun(case, pipeline), TINY_CLIPS if settings.tiny else CLIPS
    folder = settings.work / name.replace("/", "-")
    yield Row(name, "warm-up", time_turn({"warm-up": lambda: pipeline.warm_up(run.sampling)})["warm-up"], "s")
    turns, whole = [], 0
    for batch in range(count // case.batch):
        own = folder / str(batch)
        calls = {"model": run.denoise, "decode": run.decode, "write": lambda: run.write(own, FORMAT)}  # noqa: B023
        turns.append(time_turn(calls))
        whole += _whole_files(own, run)
    for part in turns[0]:
        yield Row(name, part, statistics.median(turn[part] for turn in turns) / case.batch, "s/clip")
    seconds = sum(sum(turn.values()) for turn in turns)
    yield Row(name, "speed", count / seconds, "clips/s", note=f"{count} clips, {case.sampler}, {case.steps} steps, to {FORMAT}")
    yield Row(name, "whole files", whole, ok=whole == count, note=f"of {count}")


def _whole_files(folder: Path, run: SamplingRun) -> int:
    frames, height, width = run.clips.shape[2:]
    paths = [clip_path(folder / f"{index:06d}", FORMAT) for index in range(run.case.batch)]
    return sum(clip_file_is_whole(path, FORMAT, frames, height, width) for path in paths)
