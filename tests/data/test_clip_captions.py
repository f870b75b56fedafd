"""A clip comes with a caption of its video and its features, by seed, epoch and video alone; what does not fit is refused."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from data.trees import plant_video
from text.tiny import tiny_text_encoder
from training.captions import CHANNELS, TOKENS, random_cache

from sparsevid.data.clips import ClipDataset
from sparsevid.data.feed import Feed
from sparsevid.data.loader import SampleOrder, build_loader
from sparsevid.data.open import open_data
from sparsevid.runs.config import ConfigError, load_config
from sparsevid.text.cache import TextCache
from sparsevid.text.encoder import TextEncoder
from sparsevid.text.write import write_captions

OWN = {"a": ("a frog", "the green frog crosses a road"), "b": ("rain",), "c": ()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three videos, the first with two captions and the last with none; their card, and a cache."""
    folder = tmp_path_factory.mktemp("data")
    for name, captions in OWN.items():
        plant_video(folder / "videos" / f"{name}.mp4")
        (folder / "videos" / f"{name}.txt").write_text("\n".join(captions))
    (folder / "card.yaml").write_text(
        f"name: frogs\nroot: {folder / 'videos'}\ncaptions: {{rule: beside}}\nclip: {{frames: 3, stride: 1, size: [16, 16]}}\n"
    )
    random_cache(folder / "cache", [text for captions in OWN.values() for text in captions])
    return folder


def opened(data, *overrides, captions="cache"):
    values = [f"data.card={data / 'card.yaml'}", f"data.captions={data / captions}", f"text.tokens={TOKENS}"]
    return open_data(load_config(None, [*values, *overrides]))


def test_a_clip_is_told_a_caption_of_its_video(data):
    run = opened(data)
    cache, dataset = TextCache.open(data / "cache"), run.dataset
    drawn = {video.path: set() for video in dataset.videos}
    for epoch in range(12):
        for index, video in enumerate(dataset.videos):
            sample = dataset[epoch, index]
            caption = dataset.captions.texts[sample["caption"]]
            drawn[video.path].add(caption)
            expected = cache.read([cache.index(caption)])
            assert torch.equal(sample["text"], expected.text[0]) and torch.equal(sample["text_mask"], expected.mask[0])
    assert drawn == {"a.mp4": set(OWN["a"]), "b.mp4": {"rain"}, "c.mp4": {""}}
    assert (run.config.text.encoder, run.config.record.text_encoder) == ("random", "random, seed 0")


def test_the_draw_changes_nothing_else_and_nothing_else_changes_it(data):
    run = opened(data, "data.images=2")
    plain = ClipDataset(run.manifest, run.dataset.rule, run.dataset.source, seed=run.config.seed, images=2)
    again = pickle.loads(pickle.dumps(run.dataset))
    for key in [(epoch, index) for epoch in range(3) for index in range(3)]:
        told, sample = run.dataset[key], again[key]
        assert all(torch.equal(told[name], value) if isinstance(value, torch.Tensor) else told[name] == value
                   for name, value in {**plain[key], **sample}.items())  # fmt: skip


def test_batches_of_clips_with_stills(data):
    """Stills are told captions of their own videos."""
    run = opened(data, "data.images=2")
    loader = build_loader(run.dataset, SampleOrder(3, 0), 2, 0, 1)
    feed = Feed(iter(loader), torch.device("cpu"))
    texts = run.dataset.captions.texts
    for _ in range(3):
        batch = next(feed)
        assert batch["text"].shape == (2, 3, TOKENS, CHANNELS) and batch["text"].dtype == torch.float32
        assert batch["text_mask"].shape == (2, 3, TOKENS) and batch["text_mask"].dtype == torch.bool
        assert batch["caption"].shape == (2, 3) and batch["caption"].dtype == torch.int64
        for video, row in zip(batch["video"].tolist(), batch["caption"].tolist(), strict=True):
            own = {name: set(OWN[name[0]]) or {""} for name in (each.path for each in run.dataset.videos)}
            assert texts[row[0]] in own[run.dataset.videos[video].path]
            others = set.union(*(each for name, each in own.items() if name != run.dataset.videos[video].path))
            assert {texts[place] for place in row[1:]} <= others


def test_a_run_without_captions_has_none(data):
    sample = open_data(load_config(None, [f"data.card={data / 'card.yaml'}"])).dataset[0]
    assert not {"text", "text_mask", "caption"} & set(sample)


@pytest.mark.parametrize("missing", ["exclude", "error"])
def test_videos_without_a_caption(data, missing):
    option = f"data.card_options.captions.missing={missing}"
    if missing == "error":
        with pytest.raises(ValueError, match="1 of 3 videos have no caption, such as c.mp4"):
            opened(data, option)
        return
    run = opened(data, option)
    assert [video.path for video in run.dataset.videos] == ["a.mp4", "b.mp4"]
    assert run.manifest.fingerprint == opened(data).manifest.fingerprint


def test_captions_that_a_cache_lacks_are_counted(data, tmp_path):
    random_cache(tmp_path, ["rain"])
    with pytest.raises(ValueError, match="lacks 2 of the data's 4 captions, such as 'a frog': the command that made it"):
        opened(data, captions=tmp_path)


def test_what_does_not_fit_the_run_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="holds 6 tokens of a caption, and text.tokens = 120: set text.tokens=6"):
        opened(data, "text.tokens=120")
    with pytest.raises(FileNotFoundError, match="no such folder; `sparsevid encode_captions"):
        opened(data, captions=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="is no cache of captions"):
        opened(data, captions=tmp_path)
    with pytest.raises(ValueError, match="says nothing of captions"):
        opened(data, "data.card_options.captions.rule=none")
    with pytest.raises(ConfigError, match="text.null_mask"):
        opened(data, "text.null_mask=both")


def test_features_of_another_encoder_are_refused(data, tmp_path, caplog):
    captions = [text for each in OWN.values() for text in each]
    mine, other = tiny_text_encoder(tmp_path / "mine", captions), tiny_text_encoder(tmp_path / "other", captions, seed=1)
    cache = write_captions(tmp_path / "cache", captions, TextEncoder.from_pretrained(mine, tokens=TOKENS, device="cpu"))
    run = opened(data, captions=tmp_path / "cache")
    assert run.config.text.encoder == str(mine) and run.config.record.text_encoder == cache.encoder["fingerprint"]
    same = shutil.copytree(mine, tmp_path / "same")
    assert opened(data, f"text.encoder={same}", captions=tmp_path / "cache").config.text.encoder == str(same)
    with pytest.raises(ValueError, match=rf"features of {mine} \(fingerprint \w+, 6 tokens\), and text.encoder = {other} is"):
        opened(data, f"text.encoder={other}", captions=tmp_path / "cache")
    opened(data, f"text.encoder={tmp_path / 'gone'}", captions=tmp_path / "cache")
    assert "gone is not here to be compared with" in caplog.text


def keep(folder, name, tokens=TOKENS, channels=CHANNELS, *, heard=4, flat=False, **others):
    """Features as PixArt keeps them, of one image; junk where the mask is 0."""
    generator = np.random.default_rng(len(name) + ord(name[0]))
    values = {"caption_feature": generator.normal(size=(1, tokens, channels)).astype(np.float16)}
    values["attention_mask"] = (np.arange(tokens)[None] < heard).astype(np.int16)
    values = {key: value[0] if flat else value for key, value in values.items()} | others
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **{key: value for key, value in values.items() if value is not None})
    return values


def test_features_of_pixart_are_read_as_they_are(data, tmp_path):
    kept = {name: keep(tmp_path / "kept", name, heard=3 + place, flat=name == "b") for place, name in enumerate("abc")}
    run = opened(data, captions=tmp_path / "kept")
    assert (run.dataset.captions.tokens, run.dataset.captions.channels) == (TOKENS, CHANNELS)
    for index, video in enumerate(run.dataset.videos):
        sample, place = run.dataset[index], "abc".index(video.path[0])
        features = torch.from_numpy(kept[video.path[0]]["caption_feature"].reshape(TOKENS, CHANNELS))
        assert torch.equal(sample["text"][: 3 + place], features[: 3 + place]) and not sample["text"][3 + place :].any()
        assert sample["text_mask"].tolist() == [token < 3 + place for token in range(TOKENS)]
        assert sample["text"].dtype == torch.float16
        assert run.dataset.captions.texts[sample["caption"]] in (OWN[video.path[0]] or ("",))
    assert run.config.record.text_encoder is None


def test_of_videos_without_features_nothing_is_heard_or_they_are_left_out(data, tmp_path, caplog):
    for name in "ab":
        keep(tmp_path / "kept", name)
    with pytest.raises(ValueError, match='does not say what "no prompt" is.*as null.npz'):
        opened(data, captions=tmp_path / "kept")
    run = opened(data, "data.card_options.captions.missing=exclude", captions=tmp_path / "kept")
    assert [video.path for video in run.dataset.videos] == ["a.mp4", "b.mp4"]
    assert "holds no features of 1 of 3 videos, such as c.mp4: they are left out" in caplog.text
    with pytest.raises(ValueError, match="holds no features of 1 of 3 videos, such as c.mp4; captions.missing accepts"):
        opened(data, "data.card_options.captions.missing=error", captions=tmp_path / "kept")
    null = keep(tmp_path / "kept", "null", heard=1)
    run = opened(data, captions=tmp_path / "kept")
    index = [video.path for video in run.dataset.videos].index("c.mp4")
    assert torch.equal(run.dataset[index]["text"][0], torch.from_numpy(null["caption_feature"][0, 0]))
    assert run.dataset.captions.null().mask.sum() == 1


WRONG = {
    "mask of another length": (
        {"attention_mask": np.ones((1, 5), np.int16)},
        r"attention_mask is \(5,\), and caption_feature \(",
    ),
    "no mask": ({"attention_mask": None}, "holds no caption_feature and attention_mask that can be read"),
    "nothing heard": ({"heard": 0}, "attention_mask is 0 everywhere"),
    "other width": ({"channels": 9}, r"caption_feature is \(6, 9\), others are \(6, 10\)"),
    "other tokens": ({"tokens": 7}, r"caption_feature is \(7, 10\), others are \(6, 10\)"),
    "whole numbers": ({"caption_feature": np.ones((1, TOKENS, CHANNELS), np.int32)}, "accepted: floats"),
    "not finite": ({"caption_feature": np.full((1, TOKENS, CHANNELS), np.nan)}, "caption_feature is not finite where"),
    "mask of texts": ({"attention_mask": np.full((1, TOKENS), "1")}, "attention_mask is <U1; accepted: numbers"),
    "pickled": ({"caption_feature": np.array([{}], object)}, "that can be read"),
}


@pytest.mark.parametrize("what", WRONG)
def test_files_of_another_layout_are_named(data, tmp_path, what):
    for name in "abc":
        keep(tmp_path / "kept", name)
    change, message = WRONG[what]
    keep(tmp_path / "kept", "b", **change)
    dataset = opened(data, captions=tmp_path / "kept").dataset
    index = [video.path for video in dataset.videos].index("b.mp4")
    with pytest.raises(ValueError, match=f"b.npz.*{message}"):
        dataset[index]


@pytest.mark.parametrize("damage", [slice(300, None), slice(300, 320)], ids=["cut short", "other bytes"])
def test_files_that_are_damaged_are_named(data, tmp_path, damage):
    for name in "abc":
        keep(tmp_path / "kept", name)
    dataset = opened(data, captions=tmp_path / "kept").dataset
    path = tmp_path / "kept" / "b.npz"
    content = bytearray(path.read_bytes())
    content[damage] = b"" if damage.stop is None else bytes(byte ^ 255 for byte in content[damage])
    path.write_bytes(content)
    with pytest.raises(ValueError, match="b.npz holds no caption_feature and attention_mask that can be read"):
        dataset[[video.path for video in dataset.videos].index("b.mp4")]


def test_files_that_are_none_are_named(data, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="a.npz holds no caption_feature"):
        opened(data, captions=tmp_path / "kept")
    keep(tmp_path / "others", "z")
    with pytest.raises(ValueError, match="holds features of none of 3 videos"):
        opened(data, captions=tmp_path / "others")
