"""In which precision a KL autoencoder encodes while training: what the config says, or what pays on the device."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from sparsevid.runs.checkpoints import checkpoint_path
from sparsevid.runs.config import ConfigError, RunConfig, load_config
from sparsevid.system.logging import read_metrics
from sparsevid.training.initial import encoding_precision
from sparsevid.training.trainer import Trainer


@pytest.fixture
def run(tiny, tmp_path):
    """A function of overrides that gives a tiny run in the latents of a small KL autoencoder."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    vae.save_pretrained(tmp_path / "vae")
    fixed = ("autoencoder.kind=kl", f"autoencoder.source={tmp_path / 'vae'}", "schedule.frames=2", "train.steps=2")
    return lambda *overrides: tiny(*fixed, *overrides)[0]


def test_bfloat16_trains_as_float32_does_and_is_noted(run, caplog):
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = run(f"name={precision}", f"autoencoder.precision={precision}", "data.cache_frames=true")
        trainer = Trainer(config)
        clips = torch.randint(0, 256, (2, 3, 4, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        assert next(trainer.autoencoder.parameters()).dtype == torch.float32, "what validates, decodes and is saved"
        assert trainer.encoder.encode(clips).dtype == torch.float32
        trainer.train()
        losses[precision] = [row["train/loss"] for row in read_metrics(config.folder)]
        saved = load_config(checkpoint_path(config.folder, 2) / "config.yaml")
        assert saved.autoencoder.precision == precision
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-2) and losses["bfloat16"] != losses["float32"]
    assert "autoencoder.precision" not in caplog.text
    Trainer(run("name=float32", "autoencoder.precision=bfloat16"))
    assert "autoencoder.precision is bfloat16, it was float32 up to the checkpoint" in caplog.text


def test_float32_is_the_default_where_there_is_no_gpu(run):
    config = run("train.precision=float32")
    assert Trainer(config).config.autoencoder.precision == "float32"


def test_a_gpu_encodes_in_the_bfloat16_that_it_trains_in():
    config, gpu = RunConfig(), torch.device("cuda", 0)
    assert encoding_precision(config, gpu) is None, "a linear autoencoder has one precision"
    config.autoencoder.kind = "kl"
    assert encoding_precision(config, gpu) == "float32"
    config.train.precision = "bfloat16"
    assert encoding_precision(config, gpu) == "bfloat16" and encoding_precision(config, torch.device("cpu")) == "float32"
    config.autoencoder.precision = "float32"
    assert encoding_precision(config, gpu) == "float32"
    config.data.latents = "latents"
    assert encoding_precision(config, gpu) is None, "a cache holds what it holds"


def test_other_precisions_are_refused():
    with pytest.raises(ConfigError, match=r"autoencoder\.precision"):
        load_config(None, ["autoencoder.precision=float16"])


def test_a_run_of_images_trains_on_features_without_images(run, tmp_path):
    """A latent is a draw of its own: what is learnt is the latents that lie there, labels with them."""
    for name, draw in (
        ("features", lambda i: np.full((1, 4, 8, 8), i % 2, np.float32)),
        ("labels", lambda i: np.array([i % 2])),
    ):
        (tmp_path / "latents" / f"a_{name}").mkdir(parents=True)
        for i in range(4):
            np.save(tmp_path / "latents" / f"a_{name}" / f"{i}.npy", draw(i))
    images = ["data.card=imagenet", "data.frames=1", "data.size=[16,16]", "data.flip=false", "model.layout=3D"]
    where = ["data.root=null", f"data.latents={tmp_path / 'latents'}", "data.cache_frames=false", "monitor.validate_every=1"]
    trainer = Trainer(run(*images, *where))
    assert (trainer.spec.input_size, trainer.spec.num_classes, trainer.monitor.clips[0].latents.unique().numel()) == (
        (1, 8, 8),
        1000,
        1,
    )
    trainer.train()
    assert [row["step"] for row in read_metrics(trainer.config.folder) if "validation/loss" in row] == [1, 2]
