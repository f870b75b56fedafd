"""A run in the latents of a causal autoencoder over space and time: trained, sampled, and counted as it is."""

import torch
from autoencoder.tiny_vaes import tiny_vae

from sparsevid.autoencoder.wan import WanAutoencoder
from sparsevid.benchmark.candidates import open_run
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.training.trainer import Trainer


def test_a_run_in_causal_latents_trains_and_samples(tiny, tmp_path):
    tiny_vae("wan").save_pretrained(tmp_path / "vae")
    settings = ("autoencoder.kind=wan", f"autoencoder.source={tmp_path / 'vae'}", "autoencoder.slicing=true", "data.frames=5")
    config, path = tiny(*settings, "train.steps=1", "schedule.frames=1", "train.global_batch=2")
    counted = open_run(path).spec
    assert counted.input_size == (2, 4, 4) and counted.in_channels == 4
    trainer = Trainer(config)
    assert trainer.spec == counted and trainer.train()
    pipeline = VideoPipeline.from_pretrained(config.folder)
    assert isinstance(pipeline.autoencoder, WanAutoencoder) and pipeline.autoencoder.slicing
    clips = pipeline(num=2, steps=2, show_progress=False)
    assert clips.shape == (2, 3, 5, 32, 32) and clips.dtype == torch.uint8
    longer = pipeline(num=1, steps=1, frames=9, show_progress=False)
    assert longer.shape[2] == 9
    assert pipeline.sampling(frames=1).input_size[0] == 1
