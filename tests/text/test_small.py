"""The small encoder: words it tells apart, the same files for the same seed, and what it refuses."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers (extra `text`)")

from PIL import Image

from sparsevid.cli import main
from sparsevid.text.cache import TextCache
from sparsevid.text.encoder import TextEncoder, source_fingerprint
from sparsevid.text.small import CHANNELS, make_small_encoder

CAPTIONS = ("a green frog crosses a road", "a yellow ball hits bricks", "two planes shoot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_small_encoder(tmp_path_factory.mktemp("small") / "t5", CAPTIONS)


def test_a_word_is_known_by_its_features_wherever_it_stands(folder):
    """Of two captions in another order, each word is nearest to itself."""
    encoder = TextEncoder.from_pretrained(folder, tokens=8)
    text, mask, _ = encoder(["green frog ball bricks", "bricks green ball frog"])
    words = [("green", "frog", "ball", "bricks"), ("bricks", "green", "ball", "frog")]
    assert text.shape == (2, 8, CHANNELS) and mask.sum(dim=1).tolist() == [5, 5]
    nearest = torch.cdist(text[0, :4], text[1, :4]).argmin(dim=1).tolist()
    assert [words[1][place] for place in nearest] == list(words[0])


def test_words_are_known_that_captions_write_with_capital_letters_alone(tmp_path):
    encoder = TextEncoder.from_pretrained(make_small_encoder(tmp_path / "t5", ["Red square", "GREEN square"]), tokens=8)
    red, green, lower, unknown = encoder(["Red square", "GREEN square", "red square", "a square"]).text
    assert torch.equal(red, lower)
    assert not any(torch.equal(red, other) for other in (green, unknown)) and not torch.equal(green, unknown)


def test_the_same_seed_writes_the_same_encoder_and_draws_nothing_of_the_callers(folder, tmp_path):
    before = torch.random.get_rng_state()
    again = make_small_encoder(tmp_path / "again", CAPTIONS)
    assert torch.random.get_rng_state().equal(before)
    assert source_fingerprint(again, 8) == source_fingerprint(folder, 8)
    other = make_small_encoder(tmp_path / "other", CAPTIONS, seed=1)
    assert source_fingerprint(other, 8) != source_fingerprint(folder, 8)


def test_no_channel_and_captions_without_words_are_refused(tmp_path):
    with pytest.raises(ValueError, match="channels = 0; accepted: from 1"):
        make_small_encoder(tmp_path / "t5", CAPTIONS, channels=0)
    with pytest.raises(ValueError, match="no word"):
        make_small_encoder(tmp_path / "t5", ["", " "])
    assert not (tmp_path / "t5").exists()


def test_an_encoder_is_written_whole_or_not_at_all_and_over_nothing(tmp_path, monkeypatch):
    (tmp_path / "t5").mkdir()  # nothing is in it
    with monkeypatch.context() as broken, pytest.raises(OSError, match="no room"):
        broken.setattr("transformers.T5EncoderModel.save_pretrained", _full)
        make_small_encoder(tmp_path / "t5", CAPTIONS)
    assert not list((tmp_path / "t5").iterdir()) and [path.name for path in tmp_path.iterdir()] == ["t5"]
    make_small_encoder(tmp_path / "t5", CAPTIONS)
    with pytest.raises(FileExistsError, match="t5 is there already"):
        make_small_encoder(tmp_path / "t5", CAPTIONS)


def _full(*_, **__):
    raise OSError("no room")


def test_the_command_makes_an_encoder_once_where_none_is(tmp_path):
    """And another set of captions is encoded by the one that is there."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number, text in enumerate(CAPTIONS):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(tree / f"{number}.png")
        (tree / f"{number}.txt").write_text(text)
    (tmp_path / "card.yaml").write_text('name: few\ntrees: ["*.png"]\nmedia: image\ncaptions: {rule: beside}\n')
    command = ["encode_captions", str(tmp_path / "card.yaml"), "--root", str(tree), "--encoder", str(tmp_path / "words")]
    made = [*command, "--make-encoder", "--tokens", "9", "--device", "cpu", "--out"]
    assert main([*made, str(tmp_path / "first")]) == main([*made, str(tmp_path / "second")]) == 0
    caches = [TextCache.open(tmp_path / name) for name in ("first", "second")]
    assert set(caches[0].captions) == {"", *CAPTIONS} and caches[0].fingerprint() == caches[1].fingerprint()
    assert caches[0].encoder["fingerprint"] == source_fingerprint(tmp_path / "words", 9)
