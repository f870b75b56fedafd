"""Latents as fast-DiT keeps them, read as they are: values, labels, and what is refused."""

import numpy as np
import pytest
import torch

from sparsevid.data.latents.features import FeatureFolder
from sparsevid.data.open import open_data, use_latents
from sparsevid.data.tree.rules import TreeRules
from sparsevid.runs.config import load_config

LABELS = (7, 0, 7, 3, 9, 1, 2, 5, 4, 6, 8, 0)  # of 12 latents: 10 and 11 come after 2 by number, not by name


def write(folder, count=12, shape=(1, 4, 8, 8), labels=LABELS):
    draws = np.random.default_rng(0)
    for name in ("tiny_features", "tiny_labels"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        np.save(folder / "tiny_features" / f"{i}.npy", draws.normal(size=shape).astype(np.float32))
        np.save(folder / "tiny_labels" / f"{i}.npy", np.array([labels[i]]))
    return folder


def opened(folder, autoencoder, *overrides):
    config = ["data.card=imagenet", f"data.latents={folder}", "data.size=[16,16]", "data.flip=false", "autoencoder.kind=kl"]
    data = open_data(load_config(None, [*config, *overrides]))
    use_latents(data, autoencoder)
    return data


def test_a_run_gets_the_latents_and_labels_that_lie_there(tmp_path, autoencoder, monkeypatch):
    """No image is looked for; the posterior has no spread, so each draw is the latent itself."""
    monkeypatch.delenv("SPARSEVID_DATA", raising=False)
    data = opened(write(tmp_path / "latents"), autoencoder)
    assert len(data.manifest.classes) == 1000 and len(data.dataset) == 12
    for index, label in enumerate(LABELS):
        sample = data.dataset[index]
        kept = torch.from_numpy(np.load(tmp_path / "latents" / "tiny_features" / f"{index}.npy"))[0]
        moments = sample["clip"][None]
        for generator in (None, torch.Generator().manual_seed(index)):
            torch.testing.assert_close(autoencoder.latents(moments, generator)[0, :, 0], kept, atol=1e-5, rtol=0)
        assert sample["label"] == label
    again = opened(tmp_path / "latents", autoencoder)
    assert again.manifest.fingerprint == data.manifest.fingerprint


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["data.size=[32,32]"], r"holds latents \(4, 8, 8\), and the run's are \(4, 16, 16\)"),
        (["data.flip=true"], "no clip can be mirrored any more; accepted: data.flip=false"),
    ],
)
def test_a_run_that_they_do_not_fit_is_refused(tmp_path, autoencoder, overrides, reason):
    with pytest.raises(ValueError, match=reason):
        opened(write(tmp_path / "latents", 2), autoencoder, *overrides)


def test_what_is_no_such_folder_is_said_by_name(tmp_path, autoencoder):
    assert FeatureFolder.find(tmp_path) is None
    (tmp_path / "a_features").mkdir()
    with pytest.raises(ValueError, match="a_features holds no .npy"):
        FeatureFolder.find(tmp_path)
    np.save(tmp_path / "a_features" / "0.npy", np.zeros((4, 8, 8), np.float32))
    with pytest.raises(ValueError, match="a_labels is missing"):
        FeatureFolder.find(tmp_path)
    (tmp_path / "a_labels").mkdir()
    with pytest.raises(ValueError, match=r"0\.npy is no label of"):
        FeatureFolder.find(tmp_path).manifest(2, 0, TreeRules(), lambda: tmp_path)
    np.save(tmp_path / "a_labels" / "0.npy", np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"is int64 \(2,\); accepted: one whole number"):
        FeatureFolder.find(tmp_path).manifest(2, 0, TreeRules(), lambda: tmp_path)
    np.save(tmp_path / "a_features" / "x.npy", np.zeros((4, 8, 8), np.float32))
    with pytest.raises(ValueError, match="latents are named by numbers"):
        FeatureFolder.find(tmp_path).manifest(2, 0, TreeRules(), lambda: tmp_path)
    (tmp_path / "b_features").mkdir()
    with pytest.raises(ValueError, match="several folders of latents: a_features, b_features"):
        FeatureFolder.find(tmp_path)
    strange = write(tmp_path / "strange", 1, shape=(8, 8))
    with pytest.raises(ValueError, match=r"is float32 \(8, 8\); accepted: floats"):
        FeatureFolder.find(strange)
