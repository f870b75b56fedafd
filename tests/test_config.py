"""Configs are strict: every mistake is an error that names the key."""

import pytest

from sparsevid.config import ConfigError, load_config, save_config


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_then_overrides_then_saved_and_read_back(tmp_path):
    path = write(tmp_path, "name: a\ntrain:\n  lr: 2.0e-3\n  steps: 7\n")
    config = load_config(path, ["train.lr=1e-4", "data.size=[32,48]", "model.preset=DiT-S/8"])
    assert (config.train.lr, config.train.steps, config.data.size, config.model.preset) == (1e-4, 7, [32, 48], "DiT-S/8")
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("text", "overrides", "reason"),
    [
        ("train:\n  learning_rate: 1\n", [], r"unknown key 'train.learning_rate'; did you mean 'train\.\w+'"),
        ("trian:\n  lr: 1\n", [], "unknown key 'trian'; did you mean 'train'"),
        ("", ["train.stepz=3"], "unknown key 'train.stepz'; did you mean 'train.steps'"),
        ("", ["lr=3"], "unknown key 'lr'; did you mean 'train.lr'"),
        ("", ["train.steps=many"], "train.steps"),
        ("train: 3\n", [], "train is a section"),
        ("", ["train.steps"], "not of the form key=value"),
        ("", ["objective.kind=score"], "objective.kind = 'score'; accepted are diffusion, flow"),
        ("", ["train.steps=0"], "at least 1"),
        ("", ["train.micro_batch=0"], "train.micro_batch = 0; it is at least 1"),
        ("", ["train.keep_every=0"], "at least 1"),
        ("", ["monitor.score_every=-1"], "not negative"),
        ("", ["train.weight_decay=-0.1"], "not negative"),
        ("", ["model.num_heads=0"], "model.num_heads = 0; it is at least 1"),
        ("", ["autoencoder.patch=0"], "autoencoder.patch = 0; it is at least 1"),
        ("", ["train.lr=.nan"], "train.lr = nan; accepted are finite numbers"),
        ("", ["train.weight_decay=.inf"], "train.weight_decay = inf; accepted are finite numbers"),
        ("", ["train.betas=[0.9, .nan]"], "train.betas = nan; accepted are finite"),
        ("", ["schedule.table=[[.nan, [1, 1, 1]]]"], "schedule.table = nan; accepted are finite"),
        ("", ["train.timeout=0"], "train.timeout = 0.0; it is above 0"),
        ("", ["train.eps=0"], "above 0"),
        ("", ["train.ema_decay=1"], "train.ema_decay = 1.0; accepted is 0 up to 1, without 1 itself"),
        ("", ["train.betas=[0.9, 1.5]"], "without 1 itself"),
        ("", ["train.betas=[0.9]"], "they are two"),
        ("", ["objective.label_dropout=2"], "accepted is 0 up to 1$"),
        ("- 1\n", [], "no mapping"),
        ("a: [1\n", [], "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(write(tmp_path, text or "seed: 1\n"), overrides)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no config file .*nothing.yaml"):
        load_config(tmp_path / "nothing.yaml")
