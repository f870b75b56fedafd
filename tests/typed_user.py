"""What somebody may write who has sparsevid installed. It is not run: `test_typing` has mypy read it, strictly."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sparsevid
from sparsevid import DiffusionTransformer, ModelSpec, VideoPipeline, build_spec
from sparsevid.autoencoder.base import Autoencoder
from sparsevid.autoencoder.load import load_autoencoder
from sparsevid.benchmark import DECODER_LIMIT, DECODER_MEASURES
from sparsevid.benchmark.candidates import Candidate, open_run
from sparsevid.cli import COMMANDS, add_json_flag, main, run_tool
from sparsevid.data.clips import ClipDataset, Sample
from sparsevid.data.open import RunData, open_data
from sparsevid.data.tree.cards import Card, load_card
from sparsevid.diffusion import BOTH_HALVES, CONDITIONAL, MASKS, NULL, SAMPLER_NAMES
from sparsevid.diffusion.samplers import ddim, sampler_times
from sparsevid.diffusion.wrappers import with_guidance, with_token_schedule
from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.metrics.distances import frechet_distance
from sparsevid.evaluation.protocols import list_protocols, load_protocol
from sparsevid.generation import NULL_CAPTIONS, OF_PROMPTS, PADDINGS, SCHEDULES, GenerationError
from sparsevid.models.convert.checkpoint_file import read_checkpoint
from sparsevid.models.convert.dense_to_sparse import dense_to_sparse
from sparsevid.models.convert.public import from_public
from sparsevid.runs.config import RunConfig, load_config
from sparsevid.savings import parse_saving, saved
from sparsevid.search import SearchError
from sparsevid.sparsity.cost import forward_macs, parameter_count, sampling_macs
from sparsevid.sparsity.grid import Grid
from sparsevid.sparsity.layout import parse_layout
from sparsevid.sparsity.memory import activation_memory
from sparsevid.sparsity.schedule import TokenSchedule, paper_schedule
from sparsevid.study import StudyError
from sparsevid.text.encoder import TextEncoder
from sparsevid.training import TrainingError
from sparsevid.training.trainer import Trainer
from sparsevid.videos import BACKENDS
from sparsevid.videos.read import probe, read_frames
from sparsevid.videos.write import write_clip

NAMES: list[tuple[str, ...]] = [
    DECODER_MEASURES, SAMPLER_NAMES, BOTH_HALVES, MASKS, SCHEDULES, NULL_CAPTIONS, PADDINGS, OF_PROMPTS, BACKENDS,
    tuple(COMMANDS), (CONDITIONAL, NULL, sparsevid.__version__),
]  # fmt: skip
ERRORS: tuple[type[Exception], ...] = (GenerationError, SearchError, StudyError, TrainingError)


def model_of(name: str) -> DiffusionTransformer:
    """A model of a preset, with what it costs."""
    spec: ModelSpec = build_spec(name)
    model: DiffusionTransformer = DiffusionTransformer(spec, attention="math").eval()
    dense: Grid = spec.dense_grid()
    schedule: TokenSchedule = paper_schedule(dense, 2, 0.5, 0.75)
    macs: int = forward_macs(spec) + forward_macs(spec.dense(), size=(16, 32, 32))
    ratio: float = sampling_macs(spec, schedule, sampler_times("ddim", 10)).ratio
    memory: int = sum(layer.kept for layer in activation_memory(spec, 2, checkpoint_layers="RD"))
    print(parse_layout(spec.layout).is_sparse, macs, ratio, memory, parameter_count(spec), spec.to_dict()["layout"])
    return model


def samples_of(folder: Path, out: Path) -> list[Path]:
    """Clips of a checkpoint as files."""
    pipeline: VideoPipeline = VideoPipeline.from_pretrained(folder, dtype="bfloat16")
    clips: Tensor = pipeline(4, steps=20, guidance=2.0, savings=["static:every=2"])
    pipeline.save(clips, out)
    for indices, batch in pipeline.batches(range(8), show_progress=False):
        write_clip(out / f"{indices[0]:06d}", batch[0], pipeline.fps, "mp4")
    encoder: TextEncoder = TextEncoder.from_pretrained(folder)
    print(encoder(["a cat"]).mask.shape)
    return sorted(out.iterdir())


def sampled_by_hand(model: DiffusionTransformer, x: Tensor) -> Tensor:
    """Without a pipeline."""
    spec = model.spec
    leaving_out = saved(model, parse_saving("teacache:threshold=0.1"), sampler_times("ddim", 10))
    guided = with_guidance(
        with_token_schedule(leaving_out, paper_schedule(spec.dense_grid(), 2, 0.5, 0.75)), 2.0, spec.num_classes
    )
    return ddim(guided, x, 10, labels=torch.zeros(len(x), dtype=torch.long))


def converted(file: Path) -> dict[str, Tensor]:
    """A public checkpoint, made sparse."""
    dense = from_public(read_checkpoint(file), preset="Latte-XL/2", num_classes=101)
    weights, _ = dense_to_sparse(dense.weights, dense.spec, build_spec("SparseLatte-XL/2"))
    return dict(weights)


def clips_of(config_file: Path, video: Path) -> Sample:
    """What a run is trained on."""
    config: RunConfig = load_config(config_file, ["train.steps=10"])
    card: Card = load_card(config.data.card)
    data: RunData = open_data(config)
    dataset: ClipDataset = data.dataset
    sample: Sample = dataset[0, 0]
    frames: Tensor = read_frames(video, [0, 1], BACKENDS[0])
    first_stage: Autoencoder = load_autoencoder(config_file.parent)
    print(card.fps, data.config.data.clip().size, probe(video).fps, first_stage.encode(frames[None]).shape)
    return sample


def score_of(real: str, fake: Path) -> float:
    """Of generated clips, step by step."""
    protocol, detector = load_protocol(list_protocols()[0]), build_detector("i3d", "cpu")
    chosen = choose_clips(fake, "fake", protocol), choose_clips(real, "real", protocol)
    features = [torch.cat([detector(clip[None]) for _, clip in clips.read(0, len(clips))]) for clips in chosen]
    return frechet_distance(features[0], features[1])


def train(run: Path) -> Path:
    """A run, if it is one; what it goes by is known before."""
    found: Candidate = open_run(run, ["train.lr=1e-4"])
    trainer = Trainer(found.run_config)
    trainer.train()
    return trainer.save()


def command(arguments: list[str]) -> int:
    """The console command, and a tool beside it."""
    parser = argparse.ArgumentParser()
    add_json_flag(parser)
    told: dict[str, Any] = vars(parser.parse_args([]))
    return main(arguments) or run_tool("cost", ["Latte-S/2"]) or int(told["json"]) or int(DECODER_LIMIT)


def refused(model: DiffusionTransformer, pipeline: VideoPipeline) -> None:
    """Mistakes. Were one of them none, or what is imported of no known type, mypy would find its note of no use."""
    build_spec(28)  # type: ignore[arg-type]  # a name
    ModelSpec(layout="28D", hidden_size=64)  # type: ignore[call-arg]  # without heads
    forward_macs(model.spec, grid="4,8,8")  # type: ignore[arg-type]  # three numbers
    saved(pipeline, parse_saving("static"))  # type: ignore[arg-type]  # a model
    pipeline.save([], "out")  # type: ignore[arg-type]  # a tensor
    sparsevid.Pipeline  # type: ignore[attr-defined]  # noqa: B018 (no such name)
