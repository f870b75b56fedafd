"""Configs are strict: every mistake is an error that names the key."""

import os
from pathlib import Path

import pytest

from sparsevid.runs.config import ConfigError, RunConfig, load_config, save_config
from sparsevid.system.home import expand_home


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
        ("", ["data.root=/x/${nowhere}"], "data.root: .*nowhere"),
        ("", ["name=${"], "not valid YAML"),
        ("a: [1\n", [], "not valid YAML"),
        ("train: {init_from: '${oc.env:HOME}'}\n", [], "a reference names another key"),
        ("data:\n  size: ['${oc.${name}:x}', 3]\n", [], "a reference names another key"),
        ("model: {preset: [a]}\nsample: {reuse_every: 2}\n", [], "model.preset"),  # of a file of before, too
    ],
)
def test_mistakes_are_named(tmp_path, text, overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(write(tmp_path, text or "seed: 1\n"), overrides)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no config file .*nothing.yaml"):
        load_config(tmp_path / "nothing.yaml")


TEXTS = ["2024_11_28", "007", "1:30", "1e-4", "0x10", "on", "No", "2024-11-28", "12_000.5", ".inf", "null", "~"]


@pytest.mark.parametrize("text", [*TEXTS, "a #1", "a: b", "[x", "=", "#1", "*x"])
def test_text_of_an_override_stays_as_it_was_typed(text):
    assert load_config(None, [f"name={text}"]).name == text.replace("~", str(Path.home()))


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_a_file_stays_as_it_was_typed(tmp_path, text):
    config = load_config(
        write(tmp_path, f"name: {text}\ndata: {{card: {text}x}}\nrecord: {{classes: [{text}], versions: {{{text}: {text}}}}}\n")
    )
    found = (config.name, config.record.classes, config.record.versions)
    assert found == tuple(expand_home(each) for each in (text, [text], {text: text}))
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_what_is_no_text_is_read_as_before(tmp_path):
    text = (
        "seed: 1_000\ntrain: {lr: 1e-4, betas: [0, 1e-1]}\ndata: {flip: on, root: null}\nschedule: {table: [[1, [2, 2, 2]]]}\n"
    )
    config = load_config(write(tmp_path, text), ["data.split=null", "data.latents=", "train.steps='12'", 'name="a b"'])
    assert (config.seed, config.train.lr, config.train.betas, config.data.flip) == (1000, 1e-4, [0.0, 0.1], True)
    assert (config.data.root, config.data.split, config.data.latents) == (None, None, None)
    assert (config.train.steps, config.name, config.schedule.table) == (12, "a b", [[1, [2, 2, 2]]])


def test_keys_that_are_there_twice_are_named(tmp_path):
    with pytest.raises(ConfigError, match="not valid YAML: found duplicate key name"):
        load_config(write(tmp_path, "name: a\nname: b\n"))


def test_the_home_folder_is_meant_by_a_tilde_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "seed: 3\n")
    (tmp_path / "below").mkdir()
    path = write(tmp_path / "below", "base: ~/run.yaml\noutput: ~/runs\nautoencoder: {source: ~/vae}\n")
    overrides = ["data.root=~/data", "data.latents=~/latents", "train.init_from=~/x.pt", "data.card_options.root=~/other"]
    config = load_config(path, [*overrides, "data.card=~/c.yaml", "distill.teacher=~/run", "train.deepspeed=~/d.json"])
    assert (config.seed, config.output, config.data.root) == (3, f"{tmp_path}/runs", f"{tmp_path}/data")
    assert "~" not in str(config) and config.data.card_options == {"root": f"{tmp_path}/other"}
    assert load_config(None, ["name=~", "data.split=~x", "output=~no-such-user/x"]).output == "~no-such-user/x"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([f"seed={2**64}"], f"seed = {2**64}; accepted are whole numbers of 64 bits"),
        ([f"seed={-(2**63) - 1}"], "seed = -9223372036854775809; accepted are whole numbers of 64 bits"),
        ([f"train.steps={10**30}"], "train.steps = 1000"),
        ([f"data.size=[32,{10**30}]"], "data.size = 1000"),
    ],
)
def test_numbers_that_no_machine_holds_are_named(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(None, overrides)


def test_bytes_that_no_config_can_hold_are_refused():
    with pytest.raises(ConfigError, match=r"override 'data.root=/\\udcd6\\udcd0' has bytes that are no UTF-8"):
        load_config(None, ["data.root=/" + os.fsdecode(b"\xd6\xd0")])


REFERENCES = ["${x}", "a${b:c}", "\\${y}", "\\\\${z}", "${", "${oc.env:HOME}", "${name}", "tail\\", "a\\b", "plain"]


def test_a_saved_config_is_read_back_whatever_classes_and_folders_are_called(tmp_path):
    """`${…}` in the name of a class or folder is no reference to another key."""
    config = RunConfig(name="${name}")
    config.record.classes, config.data.root = REFERENCES, "/data/${x}"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_reference_to_nothing_says_how_it_is_written_as_itself():
    with pytest.raises(ConfigError, match=r"name: .*'x'.*\\\$\{ for itself"):
        load_config(None, ["name=${x}"])
    assert load_config(None, ["name=\\${x}"]).name == "${x}" and load_config(None, ["name=${output}"]).name == "runs"
