"""Checkpoints: what is written, what is kept, which are taken, and which are refused."""

import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from data.classes import write_card, write_classes
from diffusers import AutoencoderKL

from sparsevid.benchmark.candidates import open_run
from sparsevid.cli import main
from sparsevid.data.open import open_data
from sparsevid.evaluation import protocols
from sparsevid.evaluation.protocols import load_protocol
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.runs.checkpoints import CheckpointError, checkpoint_path, list_checkpoints, newest_good, verify, write_checksums
from sparsevid.runs.config import ConfigError, load_config
from sparsevid.system.checksums import file_sha256
from sparsevid.training.checkpoint import _finish
from sparsevid.training.trainer import Trainer


def test_a_full_disk_leaves_what_was_there(tiny):
    """A checkpoint that cannot be written is an error that says so; those from before are as they were."""
    config, _ = tiny("train.steps=2")
    trainer = Trainer(config)
    trainer.train()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        trainer.step = 3
        with pytest.raises(CheckpointError, match="could not be written"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in (config.folder / "checkpoints").iterdir()] == ["step-0000002"]
    assert newest_good(config.folder, for_resuming=True) == checkpoint_path(config.folder, 2)


def test_a_checkpoint_that_cannot_be_removed_is_no_end(tiny, tmp_path, caplog):
    """Moved to another disk, with a link in its place: Python removes no tree through a link."""
    config, _ = tiny("train.keep_checkpoints=1")
    trainer = Trainer(config)
    trainer.step = 1
    trainer.save()
    moved = checkpoint_path(config.folder, 1)
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    trainer.step = 0
    assert trainer.train()
    assert [path.name for path in list_checkpoints(config.folder)] == ["step-0000001", "step-0000006"]
    assert caplog.text.count("step-0000001 is not to be kept, and cannot be removed") == 3  # tried at each save


def test_drafts_of_broken_saves_go_at_the_next_save(tiny):
    config, _ = tiny("train.steps=2")
    left = config.folder / "checkpoints" / ".step-0000001.partial" / "training"
    left.mkdir(parents=True)
    (left / "rank-00000.safetensors").write_bytes(b"half")
    Trainer(config).train()
    assert [path.name for path in (config.folder / "checkpoints").iterdir()] == ["step-0000002"]


def test_files_that_rank_0_does_not_read_as_written_make_no_checkpoint(tiny, tmp_path):
    """Gone or changed on their way: the draft does not get the name of a checkpoint."""
    draft, final = tmp_path / ".step-0000001.partial", tmp_path / "step-0000001"
    (draft / "training").mkdir(parents=True)
    (draft / "training" / "rank-00000.safetensors").write_bytes(b"fragments")
    here, name = file_sha256(draft / "training" / "rank-00000.safetensors"), "training/rank-0000{}.safetensors".format
    for written in ({name(0): here, name(1): here}, {name(0): "another"}):
        with pytest.raises(CheckpointError, match="rank 0 reads something else than was written, or nothing"):
            _finish(draft, final, written)
        assert not final.exists()
    _finish(draft, final, {name(0): here})
    assert final.is_dir() and not draft.exists()


def test_training_states_of_before_and_of_something_else(tiny):
    """One that knows no `recent` steps is resumed; one without a key that all have is an error that names it."""
    config, _ = tiny("train.steps=2")
    Trainer(config).train()
    folder = checkpoint_path(config.folder, 2)
    values = json.loads((folder / "training" / "state.json").read_text(encoding="utf-8"))
    del values["recent"]
    _rewrite(folder, values)
    assert Trainer(config).step == 2
    del values["kinds"]
    _rewrite(folder, values)
    with pytest.raises(CheckpointError, match="state.json does not say kinds"):
        Trainer(config)


def _rewrite(checkpoint, values) -> None:
    (checkpoint / "training" / "state.json").write_text(json.dumps(values), encoding="utf-8")
    (checkpoint / "checksums.json").unlink()
    write_checksums(checkpoint)


def test_damaged_checkpoints_are_passed_over(tiny):
    config, _ = tiny()
    Trainer(config).train()
    assert [path.name for path in list_checkpoints(config.folder)] == ["step-0000002", "step-0000004", "step-0000006"]
    shard = checkpoint_path(config.folder, 6) / "training" / "rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    (checkpoint_path(config.folder, 4) / "checksums.json").unlink()
    assert newest_good(config.folder, for_resuming=True) == checkpoint_path(config.folder, 2)
    assert newest_good(config.folder, for_resuming=False) == checkpoint_path(config.folder, 6)  # sampling needs no shards
    config.train.resume = str(checkpoint_path(config.folder, 6))
    with pytest.raises(CheckpointError, match="does not have its recorded checksum"):
        Trainer(config)
    config.train.resume, config.train.keep_checkpoints = "auto", 1
    trainer = Trainer(config)
    assert (trainer.step, trainer.samples) == (2, 8)
    trainer.train()  # and the new checkpoints are those that are kept, not the damaged ones of later steps
    assert list_checkpoints(config.folder) == [checkpoint_path(config.folder, 6)]
    assert newest_good(config.folder, for_resuming=True) == checkpoint_path(config.folder, 6)
    config.train.resume = "never"
    with pytest.raises(ConfigError, match="has checkpoints"):
        Trainer(config)


def test_another_objective_or_autoencoder_is_not_resumed(tiny):
    Trainer(tiny("train.steps=2")[0]).train()
    with pytest.raises(CheckpointError, match="another autoencoder: patch is 8 there and 4 here"):
        Trainer(tiny("train.steps=2", "autoencoder.patch=4")[0])
    with pytest.raises(CheckpointError, match="another autoencoder: patch_frames is 1 there and 2 here"):
        Trainer(tiny("train.steps=2", "autoencoder.patch_frames=2", "schedule.frames=1")[0])


def test_what_changes_no_meaning_of_the_weights_may_change(tiny, caplog):
    """With a warning, unless it says what held before."""
    Trainer(tiny("train.steps=2")[0]).train()
    Trainer(tiny("train.steps=2", "objective.times=logit_normal")[0])
    assert "up to the checkpoint" not in caplog.text
    Trainer(tiny("train.steps=2", "autoencoder.fit_clips=32", "objective.times=uniform", "objective.label_dropout=0.5")[0])
    for change in (
        "autoencoder.fit_clips is 32, it was 64",
        "objective.times is uniform, it was logit_normal",
        "objective.label_dropout is 0.5, it was 0.1",
    ):
        assert f"{change} up to the checkpoint" in caplog.text


def test_what_is_measured_on_other_clips_is_told(tiny, caplog):
    """Losses and scores of before and after do not compare: by other counts, and by clips that a version of before chose."""
    Trainer(tiny("train.steps=2")[0]).train()
    every = ("monitor.validate_every=1", "monitor.validate_clips=2")
    Trainer(tiny("train.steps=2", "monitor.validate_clips=3", "monitor.protocol=cd-fvd")[0])
    assert "up to the checkpoint" not in caplog.text  # neither is looked at
    trainer = Trainer(tiny("train.steps=2", *every)[0])
    assert "monitor.validate_clips is 2, it was 64 up to the checkpoint" in caplog.text
    assert "validation losses are of other clips" not in caplog.text
    folder = checkpoint_path(trainer.config.folder, 2)
    values = json.loads((folder / "training" / "state.json").read_text(encoding="utf-8"))
    del values["fixed_clips"]
    _rewrite(folder, values)
    Trainer(tiny("train.steps=2")[0])
    assert "validation losses are of other clips" not in caplog.text
    Trainer(tiny("train.steps=2", *every)[0])
    assert "validation losses are of other clips than up to the checkpoint" in caplog.text


def test_another_class_behind_a_label_is_not_resumed(tiny, clips_folder, tmp_path):
    """As many classes, in another order: each label would go on with the weights of another."""
    card = tmp_path / "card.yaml"
    card.write_text("name: two\ntitle: Two clips\nlabel_rule: file\nclip: {stride: 2}\n", encoding="utf-8")
    Trainer(tiny("train.steps=2", f"data.card={card}")[0]).train()
    other = shutil.copytree(clips_folder, tmp_path / "other")
    assert Trainer(tiny("train.steps=2", f"data.card={card}", f"data.root={other}")[0]).step == 2
    (other / "carphone_distorted.mp4").rename(other / "distorted.mp4")
    there = "label 0 is 'carphone_distorted' there and 'carphone_pristine' here, label 1 is 'carphone_pristine' there"
    with pytest.raises(CheckpointError, match=f"another assignment of labels to classes: {there} and 'distorted' here"):
        Trainer(tiny("train.steps=2", f"data.card={card}", f"data.root={other}")[0])


def test_other_weights_behind_the_autoencoder_are_not_resumed(tiny, tmp_path):
    """The name of their folder is all that a checkpoint keeps of a KL autoencoder; states of before say nothing of it."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    vae.save_pretrained(tmp_path / "vae")
    config, _ = tiny("train.steps=2", "autoencoder.kind=kl", f"autoencoder.source={tmp_path / 'vae'}", "schedule.frames=2")
    Trainer(config).train()
    assert Trainer(config).step == 2
    vae.encoder.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="another autoencoder: the fingerprint of settings and weights is"):
        Trainer(config)
    folder = checkpoint_path(config.folder, 2)
    values = json.loads((folder / "training" / "state.json").read_text(encoding="utf-8"))
    del values["autoencoder"]
    _rewrite(folder, values)
    assert Trainer(config).step == 2


def test_a_run_by_relative_paths_is_used_from_another_folder(tiny, tmp_path, monkeypatch, capsys):
    """Autoencoder, card, data and protocol are found from everywhere; the message for one that is gone names what to pass."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    vae.save_pretrained(tmp_path / "models" / "vae")
    write_card(tmp_path, write_classes(tmp_path / "data", [2, 2]))
    shutil.copyfile(Path(protocols.__file__).parent / "cd-fvd.yaml", tmp_path / "protocol.yaml")
    named = ["autoencoder.kind=kl", "autoencoder.source=models/vae", "data.card=classes.yaml", "data.root=data"]
    small = ["schedule.frames=2", "data.size=[8,8]", "train.steps=1", "train.checkpoint_every=1", "sample.steps=1"]
    monkeypatch.chdir(tmp_path)
    config, _ = tiny(*named, *small, "monitor.protocol=protocol.yaml")
    trainer = Trainer(config)
    trainer.train()
    folder, elsewhere = config.folder.absolute(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    clips = VideoPipeline.from_pretrained(folder, device="cpu")(2, show_progress=False)
    assert clips.shape == (2, 3, 4, 8, 8)
    saved = load_config(folder / "config.yaml")
    assert len(open_data(saved).dataset) == 4
    counted = [open_run(each) for each in (folder, checkpoint_path(folder, 1), checkpoint_path(folder, 1) / "model")]
    assert all(each.spec == trainer.spec for each in counted) and counted[0].schedule == trainer.schedule
    assert load_protocol(saved.monitor.protocol).name == "cd-fvd"
    (tmp_path / "models").rename(tmp_path / "moved")
    arguments = ["sample", str(folder), "--out", "out", "--num", "1", "--device", "cpu"]
    assert main(arguments) == 2
    assert "pass it: --autoencoder kl:FOLDER" in capsys.readouterr().err
    assert main([*arguments, "--autoencoder", "kl:../moved/vae"]) == 0


@pytest.mark.slow
def test_a_path_is_gone_back_to_once(tiny, caplog):
    """Started again by the same command, the run goes on from what it made since; and by another path, from there."""
    Trainer(tiny()[0]).train()

    def resumed(step: int, *overrides: str) -> Trainer:
        config, _ = tiny(*overrides)
        config.train.resume = str(checkpoint_path(config.folder, step))
        return Trainer(config)

    assert resumed(2).step == 2
    branch = resumed(2, "train.steps=4")  # no checkpoint was made since
    assert branch.step == 2
    branch.train()
    assert "is taken in its place" not in caplog.text
    assert resumed(2).step == 4
    assert "step-0000004 went on from" in caplog.text and "is taken in its place" in caplog.text
    Trainer(tiny()[0]).train()  # by train.resume=auto
    shutil.rmtree(checkpoint_path(branch.config.folder, 2))  # as `train.keep_checkpoints` may
    assert resumed(2).step == 6
    damaged = checkpoint_path(branch.config.folder, 6) / "ema" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert resumed(2).step == 4 and "step-0000006: ema/model.safetensors does not have its recorded checksum" in caplog.text
    assert resumed(4).step == 4


def test_a_path_is_taken_whatever_lies_beside_it(tiny):
    """A checkpoint that is not of its branch, and cannot be read, is no reason to refuse the one that was named."""
    config, _ = tiny("train.steps=4")
    Trainer(config).train()
    file = checkpoint_path(config.folder, 4) / "ema" / "model.safetensors"
    file.unlink()
    file.mkdir()
    config.train.resume = str(checkpoint_path(config.folder, 2))
    assert Trainer(config).step == 2


@pytest.mark.parametrize("damage", ["folder", "loop"])
def test_a_checkpoint_that_cannot_be_read_is_neither_passed_over_nor_set_aside(damage, tiny):
    """It may be whole when its storage is back."""
    config, _ = tiny("train.steps=4")
    Trainer(config).train()
    file = checkpoint_path(config.folder, 4) / "ema" / "model.safetensors"
    away = file.rename(config.folder / "away")
    file.mkdir() if damage == "folder" else file.symlink_to(file)
    with pytest.raises(CheckpointError, match="step-0000004 cannot be read: .* or move it away to go on from an older"):
        Trainer(config)
    assert newest_good(config.folder, for_resuming=False) == checkpoint_path(config.folder, 2)  # for sampling
    file.rmdir() if damage == "folder" else file.unlink()
    away.rename(file)
    assert Trainer(config).step == 4


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs a file whose first byte is an error to read")
@pytest.mark.parametrize("name", ["checksums.json", "model/model.safetensors"])
def test_an_error_of_the_storage_is_told(name, tiny):
    config, _ = tiny("train.steps=2")
    Trainer(config).train()
    file = checkpoint_path(config.folder, 2) / name
    file.unlink()
    file.symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match="step-0000002 cannot be read: .*Input/output error"):
        verify(checkpoint_path(config.folder, 2))


def test_checksums_that_are_no_object_are_damage(tiny):
    config, _ = tiny("train.steps=4")
    Trainer(config).train()
    (checkpoint_path(config.folder, 4) / "checksums.json").write_text("[]", encoding="utf-8")
    assert newest_good(config.folder, for_resuming=True) == checkpoint_path(config.folder, 2)


def test_planted_files_are_not_loaded(tiny):
    config, _ = tiny("train.steps=2")
    Trainer(config).train()
    (checkpoint_path(config.folder, 2) / "training" / "extra.pt").write_bytes(b"payload")
    assert newest_good(config.folder, for_resuming=True) is None
    with pytest.raises(CheckpointError, match="has 1 checkpoints, and none of them can be resumed from"):
        Trainer(config)


def test_every_kind_of_damage_is_passed_over(tiny):
    """Cut short, a bit turned over, a rank's file gone: the checkpoint before is taken; if none is left, that is an error."""
    config, _ = tiny("train.steps=8")
    Trainer(config).train()
    kept = list_checkpoints(config.folder)
    cut, turned, gone = (path / "training" / "rank-00000.safetensors" for path in kept[:0:-1])
    cut.write_bytes(cut.read_bytes()[:-1])
    content = bytearray(turned.read_bytes())
    content[len(content) // 2] ^= 1
    turned.write_bytes(content)
    gone.unlink()
    assert newest_good(config.folder, for_resuming=True) == kept[0]
    trainer = Trainer(config)
    assert trainer.step == 2
    average = kept[0] / "ema" / "model.safetensors"
    average.write_bytes(average.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="none of them can be resumed from"):
        Trainer(config)


def test_checkpoint_of_another_model_is_refused(tiny):
    config, _ = tiny("train.steps=2")
    Trainer(config).train()
    other, _ = tiny("train.steps=2", "model.hidden_size=48")
    with pytest.raises(CheckpointError, match="another model: hidden_size is 32 there and 48 here"):
        Trainer(other)
