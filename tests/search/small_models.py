"""A dense model that is small, and what it is measured on: clips that are noise."""

from dataclasses import replace

import torch

from sparsevid.autoencoder.pixels import Pixels
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import load_config
from sparsevid.sparsity.schedule import constant_schedule
from sparsevid.sparsity.spec import ModelSpec
from sparsevid.study.file import MeasureSettings
from sparsevid.training.validation import FixedClip

DENSE = ModelSpec("6D", 16, 2, (4, 6, 4), in_channels=3, patch_size=1, num_classes=2, learn_sigma=False)
TEXT = replace(DENSE, num_classes=0, text_channels=6, text_tokens=5, shared_modulation=True, null_caption=True)
MEASURE = MeasureSettings(clips=3, times=2, batch=4)


def pipeline_of(model: DiffusionTransformer, kind: str = "flow") -> VideoPipeline:
    spec = model.spec
    schedule = constant_schedule(spec.sparse_grid) if spec.is_sparse else None
    return VideoPipeline(model, Pixels(), load_config(None, [f"objective.kind={kind}"]), schedule)


def clips_of(spec: ModelSpec, count: int = MEASURE.clips) -> list[FixedClip]:
    generator = torch.Generator().manual_seed(7)
    shape = (spec.in_channels, *spec.input_size)
    clips = [FixedClip(number, torch.randn(shape, generator=generator), number % 2) for number in range(count)]
    if not spec.text_channels:
        return clips
    mask = torch.arange(spec.text_tokens) < 3
    texts = [torch.randn(spec.text_tokens, spec.text_channels, generator=generator) for _ in clips]
    return [clip._replace(text=text, text_mask=mask) for clip, text in zip(clips, texts, strict=True)]
