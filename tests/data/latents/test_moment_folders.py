"""PixArt's folders of SA-1B are read as they are: captions, parts, posteriors and features, with or without the images."""

import numpy as np
import pytest
import torch
from data.trees import plant_frames

from sparsevid.data.open import open_data, use_latents
from sparsevid.runs.config import load_config

NAMES = ("sa_10", "sa_2", "sa_7", "sa_30")
PARTS = {"part0": ["sa_10", "sa_2"], "part1": ["sa_7"]}  # sa_30 is in none
TOKENS, CHANNELS = 6, 10


def sam(root, images=True, shape=(2, 4, 8, 8)):
    """The tree in small: images of 16×16, whose latents by a factor of 2 are 8×8."""
    draws = np.random.default_rng(0)
    moments, features = root / "img_vae_feature" / "train_vae_256" / "noflip", root / "caption_feature_wmask"
    for folder in (moments, features, root / "captions", root / "partition"):
        folder.mkdir(parents=True)
    if images:
        plant_frames(root / "images", [f"{name}.jpg" for name in NAMES], (20, 24))
    for name in NAMES:
        (root / "captions" / f"{name}.txt").write_text(f"a picture, {name}")
        np.save(moments / f"{name}.npy", np.abs(draws.normal(size=shape)).astype(np.float32) * 2 - [[[[1]]], [[[0]]]])
        mask = np.arange(TOKENS)[None] < 1 + len(name)
        feature = draws.normal(size=(1, TOKENS, CHANNELS)).astype(np.float16)
        np.savez(features / f"{name}.npz", caption_feature=feature, attention_mask=mask.astype(np.int16))
    for part, names in PARTS.items():
        (root / "partition" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return root


def opened(root, *overrides, latents=True):
    values = ["data.card=sam", f"data.root={root}", f"data.captions={root / 'caption_feature_wmask'}", "data.size=[16,16]"]
    values += [f"data.latents={root / 'img_vae_feature' / 'train_vae_256' / 'noflip'}"] if latents else []
    return open_data(load_config(None, [*values, "autoencoder.kind=kl", f"text.tokens={TOKENS}", *overrides]))


def names(run):
    return [video.path.rpartition("/")[2].partition(".")[0] for video in run.dataset.videos]


@pytest.mark.parametrize("images", [True, False])
def test_a_run_needs_neither_autoencoder_nor_encoder_nor_images(tmp_path, autoencoder, images):
    run = opened(sam(tmp_path / "sam", images))
    use_latents(run, autoencoder)
    assert names(run) == ["sa_2", "sa_7", "sa_10"]
    for index, name in enumerate(names(run)):
        sample = run.dataset[index]
        mean, deviation = torch.from_numpy(
            np.load(tmp_path / "sam" / "img_vae_feature" / "train_vae_256" / "noflip" / f"{name}.npy")
        ).float()
        noise = torch.randn(1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        found = autoencoder.latents(sample["clip"][None], torch.Generator().manual_seed(1))
        scale = autoencoder.configuration()["scaling_factor"]
        torch.testing.assert_close(found[0, :, 0], scale * (mean + deviation * noise[0, :, 0]), rtol=1e-4, atol=1e-4)
        assert run.dataset.captions.texts[sample["caption"]] == f"a picture, {name}"
        kept = np.load(tmp_path / "sam" / "caption_feature_wmask" / f"{name}.npz")
        heard = torch.from_numpy(kept["attention_mask"][0] != 0)
        assert torch.equal(sample["text_mask"], heard)
        assert torch.equal(sample["text"][heard], torch.from_numpy(kept["caption_feature"][0])[heard])


def test_images_by_the_ordinary_card(tmp_path):
    run = opened(sam(tmp_path / "sam"), latents=False)
    assert names(run) == ["sa_2", "sa_7", "sa_10"] and run.dataset[0]["clip"].shape == (3, 1, 16, 16)
    one = opened(tmp_path / "sam", "data.card_options.split.lists.train=partition/part1.txt", latents=False)
    assert names(one) == ["sa_7"]
    assert names(opened(tmp_path / "sam", "data.split=all", latents=False)) == ["sa_2", "sa_7", "sa_10", "sa_30"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.zeros((4, 8, 8), np.float32), r"float32 \(4, 8, 8\); accepted: floats \(2,C,h,w\)"),
        (np.zeros((2, 4, 4, 8), np.float32), r"\(4, 4, 8\), others are \(4, 8, 8\)"),
        (-np.ones((2, 4, 8, 8), np.float32), "deviations, are not negative"),
        (np.full((2, 4, 8, 8), np.nan, np.float32), "accepted: finite floats"),
        (np.array([{}], object), "no posterior"),
    ],
)
def test_what_is_no_posterior_is_named(tmp_path, autoencoder, change, message):
    run = opened(sam(tmp_path / "sam"))
    use_latents(run, autoencoder)
    np.save(tmp_path / "sam" / "img_vae_feature" / "train_vae_256" / "noflip" / "sa_7.npy", change)
    with pytest.raises(ValueError, match=f"sa_7.npy .*{message}"):
        run.dataset[1]


def test_runs_that_do_not_fit_are_refused(tmp_path, autoencoder):
    sam(tmp_path / "sam", images=False)
    with pytest.raises(ValueError, match=r"holds latents \(4, 8, 8\), and the run's are \(4, 16, 16\)"):
        use_latents(opened(tmp_path / "sam", "data.size=[32,32]"), autoencoder)
    with pytest.raises(ValueError, match="no clip can be mirrored"):
        use_latents(opened(tmp_path / "sam", "data.flip=true"), autoencoder)
    (tmp_path / "sam" / "partition" / "part0.txt").write_text("sa_999\nsa_2")
    with pytest.raises(ValueError, match=r"1 of 3 entries of part0.txt, part1.txt are not in the tree: sa_999"):
        opened(tmp_path / "sam")
    for part in PARTS:
        (tmp_path / "sam" / "partition" / f"{part}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no split list partition/part\*.txt"):
        opened(tmp_path / "sam")
