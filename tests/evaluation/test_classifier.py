"""The classifier of clips on planted labels: colours, directions, none; the same to the bit; kept and read again."""

import pytest
import torch
from study.tiny_study import CLASSES, moving_clips

from sparsevid.evaluation.classifier import FRAMES, SIDE, ClipClassifier, looked_at

NAMES = ("red", "green", "blue")


def coloured(count: int, seed: int) -> tuple[torch.Tensor, list[int]]:
    """Noise with a little more of one colour."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 180, (count, 3, 5, 20, 28), generator=generator, dtype=torch.uint8)
    labels = [index % 3 for index in range(count)]
    for clip, label in zip(clips, labels, strict=True):
        clip[label] += 30
    return clips, labels


def test_it_tells_colours():
    model = ClipClassifier.fit(*coloured(48, 0), NAMES, steps=30)
    clips, labels = coloured(30, 1)
    assert model.accuracy(clips, labels) == 1.0
    assert torch.equal(model.logits(clips).argmax(dim=1), torch.tensor(labels))
    assert torch.allclose(model.logits(clips, batch=7), model.logits(clips), atol=1e-5)


def test_it_tells_where_something_moves_to():
    """Single frames are of one class as of the other."""
    model = ClipClassifier.fit(*moving_clips(60, 0), CLASSES, steps=40)
    assert model.accuracy(*moving_clips(60, 1)) >= 0.95


def test_a_seed_repeats_to_the_bit_and_leaves_other_draws_alone():
    clips, labels = coloured(24, 0)
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (ClipClassifier.fit(clips, labels, NAMES, seed, steps=5).logits(clips) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_it_is_kept_with_its_classes(tmp_path):
    clips, labels = coloured(12, 0)
    model = ClipClassifier.fit(clips, labels, NAMES, steps=3)
    model.save(tmp_path / "c.safetensors")
    read = ClipClassifier.load(tmp_path / "c.safetensors")
    assert read.classes == NAMES and torch.equal(read.logits(clips), model.logits(clips))
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="holds no classifier"):
        ClipClassifier.load(tmp_path / "broken.safetensors")
    with pytest.raises(FileNotFoundError):
        ClipClassifier.load(tmp_path / "none.safetensors")


def test_what_it_cannot_take_is_refused():
    clips, labels = coloured(6, 0)
    with pytest.raises(ValueError, match="two classes or more"):
        ClipClassifier(["one"])
    with pytest.raises(ValueError, match="each clip has a label"):
        ClipClassifier.fit(clips, labels[:4], NAMES)
    with pytest.raises(ValueError, match="labels of 2 classes are 0 … 1"):
        ClipClassifier.fit(clips, labels, NAMES[:2])
    with pytest.raises(ValueError, match="clips are uint8"):
        looked_at(clips.float())


def test_any_size_and_length_is_looked_at_alike():
    clips = torch.full((2, 3, 1, 7, 90), 255, dtype=torch.uint8)
    assert looked_at(clips).shape == (2, 3 * FRAMES, SIDE, SIDE) and bool((looked_at(clips) == 1).all())
