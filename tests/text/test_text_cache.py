"""A cache of captions holds what the encoder gives of each, whoever wrote it and however often."""

import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from data.caches import contents, shard_times
from text.tiny import CAPTIONS

from sparsevid.text.cache import CachedCaption, TextCache
from sparsevid.text.encoder import TextEncoder
from sparsevid.text.write import write_captions

MANY = [*CAPTIONS, *(f"{number} {caption}" for number in ("one", "two") for caption in CAPTIONS)]
SMALL = 700  # bytes of a shard: two or three captions of 16 channels in 4 bytes


def write(folder, encoder, captions=MANY, dtype="float32", **options):
    return write_captions(folder, captions, encoder, dtype=dtype, **{"shard_bytes": SMALL, "batch": 3} | options)


@pytest.fixture(scope="module")
def cache(encoder, tmp_path_factory):
    """Not to be written to."""
    return write(tmp_path_factory.mktemp("cache"), encoder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_cache_gives_what_the_encoder_gives(encoder, dtype, tmp_path):
    cache = write(tmp_path / "cache", encoder, dtype=dtype)
    assert len(cache.shards) > 3 and (cache.channels, cache.tokens) == (16, 8)
    order = [*reversed(MANY), MANY[0], ""]
    expected, found = encoder(order), cache.read([cache.index(caption) for caption in order])
    assert found.text.dtype == getattr(torch, dtype)
    torch.testing.assert_close(
        found.text, expected.text.to(found.text.dtype), rtol=1e-2 if dtype != "float32" else 1e-5, atol=1e-6
    )
    assert torch.equal(found.mask, expected.mask) and found.cut == expected.cut


def test_each_caption_is_there_once_and_no_prompt_always(encoder, cache, tmp_path):
    repeated = write(tmp_path / "cache", encoder, [f" {caption}\n" for caption in MANY] * 3 + ["", "  "])
    assert repeated.captions == cache.captions == ("", *MANY)
    assert contents(repeated.folder) == contents(cache.folder)
    null, own = cache.null(), encoder([""])
    assert torch.equal(null.mask, own.mask) and torch.allclose(null.text, own.text) and cache.index("") == cache.index(" \n")
    assert write(tmp_path / "empty", encoder, []).captions == ("",)


def test_padding_is_not_kept(cache):
    kept = sum(caption.tokens for shard in cache.shards for caption in shard.captions)
    assert kept < 8 * len(cache.captions)
    files = sum((cache.folder / "shards" / shard.name).stat().st_size for shard in cache.shards)
    assert files < kept * 16 * 4 + 200 * len(cache.shards)


def test_a_writing_that_was_cut_short_goes_on(encoder, cache, tmp_path):
    """As a process that is killed leaves it: some shards with records, one without, a draft, and no `captions.json`."""
    folder = shutil.copytree(cache.folder, tmp_path / "cache")
    (folder / "captions.json").unlink()
    (folder / "shards" / "shard-00002.json").unlink()
    (folder / "shards" / ".shard-00003.safetensors.0a1b2c3d.partial").write_bytes(b"cut short")
    (folder / "shards" / "shard-00003.safetensors").write_bytes(b"damaged")
    finished = {name: time for name, time in shard_times(folder).items() if name[9:11] not in ("02", "03")}
    with pytest.raises(FileNotFoundError, match="begun and not finished"):
        TextCache.open(folder)
    again = write(folder, encoder)
    assert finished.items() <= shard_times(folder).items(), "finished shards are kept"
    indices = [cache.index(caption) for caption in MANY]
    assert torch.equal(again.read([again.index(caption) for caption in MANY]).text, cache.read(indices).text), "to the bit"
    again.verify()


def test_new_captions_are_added_and_others_go(encoder, cache, tmp_path):
    folder = shutil.copytree(cache.folder, tmp_path / "cache")
    before = shard_times(folder)
    grown = write(folder, encoder, [*MANY, "three green frogs"])
    assert grown.captions == (*cache.captions, "three green frogs") and before.items() <= shard_times(folder).items()
    fewer = write(folder, encoder, MANY[:5])
    assert set(fewer.captions) == {"", *MANY[:5]} and len(shard_times(folder)) < len(before)
    assert fewer.fingerprint() != cache.fingerprint() == TextCache.open(cache.folder).fingerprint()


def test_a_folder_is_not_mixed(t5, encoder, cache, tmp_path):
    folder = shutil.copytree(cache.folder, tmp_path / "cache")
    with pytest.raises(ValueError, match="made with other settings .*tokens: 8 there, 9 asked for"):
        write(folder, TextEncoder.from_pretrained(t5, tokens=9, device="cpu"))
    with pytest.raises(ValueError, match="dtype: float32 there, float16 asked for"):
        write(folder, encoder, dtype="float16")
    assert contents(folder) == contents(cache.folder)


def test_what_is_not_there_is_said(cache):
    with pytest.raises(KeyError, match="holds no caption 'snow', among 13: sparsevid encode_captions"):
        cache.index("snow")
    with pytest.raises(IndexError, match="caption 13 asked for, there are 13"):
        cache.read([0, 13])
    with pytest.raises(FileNotFoundError, match="is no cache of captions: it has no captions.json"):
        TextCache.open(cache.folder / "shards")


def test_readers_travel_to_other_processes(cache):
    expected = cache.read(range(13))
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again.read(range(13)).text, expected.text) and again.captions == cache.captions


def one_shard(name="shard-00000.safetensors", tokens=1):
    return {"shards": [{"name": name, "bytes": 1, "sha256": "", "captions": [["", tokens, 0]]}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "another format; accepted: 1"),
        ({"dtype": "int8"}, "data type 'int8'; accepted: float16, bfloat16, float32"),
        ({"encoder": None}, "does not describe"),
        ({"encoder": {"source": "t5", "tokens": 8, "dtype": "float32"}}, "does not describe .*'fingerprint'"),
        ({"channels": "many"}, "does not describe .*many"),
        ({"shards": []}, "the empty caption is missing"),
        ({"shards": [{"name": "../x.safetensors", "bytes": 1, "sha256": "", "captions": [["", 1, 0]]}]}, "not the name"),
        ({"shards": [{"name": "shard-00000.safetensors", "bytes": 1, "sha256": "", "captions": [["", 9, 0]]}]}, "has 9 tokens"),
        (
            {"shards": [{"name": "shard-00000.safetensors", "bytes": 1, "sha256": "", "captions": [["", 1, 0]]}]},
            "bytes instead",
        ),
    ],
)
def test_cache_files_are_checked(cache, change, message, tmp_path):
    folder = shutil.copytree(cache.folder, tmp_path / "cache")
    values = json.loads((folder / "captions.json").read_text())
    (folder / "captions.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=message):
        TextCache.open(folder)


def test_shards_of_another_shape_are_an_error(cache):
    wide = replace(cache, channels=17)
    with pytest.raises(ValueError, match=r"holds \[\d+, 16\], captions.json says \[\d+, 17\]"):
        wide.read([0])
    first = cache.shards[0]
    long = replace(first, captions=(*first.captions, CachedCaption("more", 2)))
    with pytest.raises(ValueError, match="captions.json says"):
        replace(cache, shards=(long, *cache.shards[1:])).read([0])


def test_damage_is_found(cache, tmp_path):
    folder = shutil.copytree(cache.folder, tmp_path / "cache")
    path = folder / "shards" / cache.shards[1].name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="does not have its recorded checksum"):
        TextCache.open(folder).verify()


def test_features_beyond_the_data_type_are_an_error(t5, tmp_path):
    encoder = TextEncoder.from_pretrained(t5, tokens=8, device="cpu")
    encoder.model.encoder.final_layer_norm.weight.fill_(1e5)
    with pytest.raises(ValueError, match="caption '': features are not finite in float16; bfloat16 and float32 hold larger"):
        write(tmp_path, encoder, dtype="float16")


@pytest.mark.parametrize(
    ("options", "message"), [({"dtype": "int8"}, "data type 'int8'"), ({"batch": 0}, "from 1"), ({"shard_bytes": 0}, "from 1")]
)
def test_arguments_are_checked(encoder, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, encoder, **options)
