"""Files that look like public checkpoints and are something else are named as what they are."""

import argparse
import os
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from models.convert.public_files import public_weights
from safetensors.torch import save_file

from sparsevid.cli import main
from sparsevid.models.convert.checkpoint_file import read_checkpoint

SHARD = "is a shard of a DeepSpeed ZeRO checkpoint.*zero_to_fp32.py"
SIT = {"path_type": "Linear", "prediction": "velocity", "loss_weight": None}  # of its trainer's arguments
ENGINE = """
import sys, torch, deepspeed
deepspeed.init_distributed("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
model = torch.nn.Linear(4, 2)
config = {"train_batch_size": 1, "zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True}
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
engine.save_checkpoint(sys.argv[1])
"""


def model_shard(weights):
    """What DeepSpeed writes for a rank of ZeRO-3: the names, with nothing in the tensors."""
    shapes = OrderedDict((name, weight.shape) for name, weight in weights.items())
    module = OrderedDict((name, torch.empty(0)) for name in weights)
    return {"module": module, "buffer_names": [], "param_shapes": [shapes], "ds_config": {}, "ds_version": "0.18.0"}


@pytest.mark.parametrize("name", ["zero_pp_rank_0_mp_rank_00_model", "bf16_zero_pp_rank_13_mp_rank_02_optim"])
def test_shards_are_known_by_their_names(tmp_path, name):
    """Before they are read: those of optimizers hold objects of DeepSpeed."""
    path = tmp_path / f"{name}_states.pt"
    path.write_bytes(b"anything")
    with pytest.raises(ValueError, match=SHARD):
        read_checkpoint(path)


def test_shards_are_known_by_what_they_hold(tmp_path):
    weights, _, _ = public_weights("dit")
    for content in (model_shard(weights), {"optimizer_state_dict": {"zero_stage": 2}, "ds_config": {}, "ds_version": "0.18.0"}):
        torch.save(content, tmp_path / "renamed.pt")
        with pytest.raises(ValueError, match=SHARD):
            read_checkpoint(tmp_path / "renamed.pt")
    whole = model_shard(weights) | {"module": weights}  # as mp_rank_00_model_states.pt, below ZeRO-3
    torch.save(whole, tmp_path / "mp_rank_00_model_states.pt")
    assert read_checkpoint(tmp_path / "mp_rank_00_model_states.pt").keys() == weights.keys()


@pytest.mark.slow
def test_shards_of_the_installed_deepspeed_are_known(tmp_path):
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    # DeepSpeed asks for an address, which the meeting in a file does not use.
    environment = ranks | {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    subprocess.run([sys.executable, "-c", ENGINE, str(tmp_path)], check=True, env=os.environ | environment)
    shards = sorted(tmp_path.glob("*/*_states.pt"))
    assert len(shards) == 2
    for shard in shards:
        with pytest.raises(ValueError, match=SHARD):
            read_checkpoint(shard)
    (model,) = (shard.rename(tmp_path / "renamed.pt") for shard in shards if "model" in shard.name)
    with pytest.raises(ValueError, match=SHARD):
        read_checkpoint(model)


@pytest.mark.parametrize("arguments", [argparse.Namespace(model="SiT-XL/2", **SIT), {"model": "REPA's", **SIT}])
def test_sit_is_known_by_the_arguments_of_its_trainer(tmp_path, arguments):
    weights, _, _ = public_weights("dit")
    torch.save({"model": weights, "ema": weights, "opt": {}, "args": arguments}, tmp_path / "0400000.pt")
    with pytest.raises(ValueError, match=r"is a checkpoint of SiT \(its args have path_type, prediction\).*flow"):
        read_checkpoint(tmp_path / "0400000.pt")
    torch.save({"ema": weights, "args": argparse.Namespace(model="DiT-XL/2", num_classes=10)}, tmp_path / "dit.pt")
    assert read_checkpoint(tmp_path / "dit.pt").keys() == weights.keys()


@pytest.mark.parametrize("name", ["SiT-XL-2-256x256.pt", "my_SiT-B.safetensors"])
def test_sit_is_known_by_the_name_of_its_file(tmp_path, capsys, name):
    """The public file is a state dict alone, in which nothing tells it from DiT's."""
    weights, _, _ = public_weights("dit")
    (save_file if name.endswith("s") else torch.save)(weights, tmp_path / name)
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out"), "--heads", "2"]) == 2
    assert "is a checkpoint of SiT (by its name)" in capsys.readouterr().err
    (tmp_path / name).rename(tmp_path / f"Transit-XL.{name.rsplit('.')[-1]}")
    assert read_checkpoint(tmp_path / f"Transit-XL.{name.rsplit('.')[-1]}").keys() == weights.keys()
