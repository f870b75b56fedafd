"""The order of samples has no gap and no repeat, and does not know how many ranks walk it."""

import gc
from itertools import islice

import pytest
import torch
from videos.made import write_video

from sparsevid.data.clips import ClipDataset
from sparsevid.data.loader import BatchOrder, SampleOrder, build_loader
from sparsevid.data.sources import VideoFrames
from sparsevid.data.tree.clip_rule import ClipRule
from sparsevid.data.tree.manifest import build_manifest


def taken(order, micro_batch, world_size, start, micro_steps):
    """Keys in global order: micro-step by micro-step, rank by rank."""
    ranks = [BatchOrder(order, micro_batch, rank, world_size, start) for rank in range(world_size)]
    steps = zip(*[islice(iter(batches), micro_steps) for batches in ranks], strict=True)
    return [key for step in steps for batch in step for key in batch]


def test_each_epoch_is_a_permutation():
    order = SampleOrder(11, seed=3)
    epochs = [[order[epoch * 11 + place] for place in range(11)] for epoch in range(4)]
    for number, keys in enumerate(epochs):
        assert {epoch for epoch, _ in keys} == {number}
        assert sorted(index for _, index in keys) == list(range(11))
    assert len({tuple(index for _, index in keys) for keys in epochs}) == 4


def test_positions_can_be_asked_in_any_order():
    order = SampleOrder(7, seed=1)
    forward = [order[p] for p in range(30)]
    assert [SampleOrder(7, seed=1)[p] for p in reversed(range(30))] == forward[::-1]
    assert [SampleOrder(7, seed=2)[p] for p in range(30)] != forward


@pytest.mark.parametrize("start", [0, 5, 24])
@pytest.mark.parametrize(("micro_batch", "world_size"), [(12, 1), (6, 2), (4, 3), (3, 4), (1, 12)])
def test_the_union_over_ranks_is_the_order_itself(micro_batch, world_size, start):
    order = SampleOrder(10, seed=0)
    assert taken(order, micro_batch, world_size, start, 5) == [order[p] for p in range(start, start + 60)]


def test_accumulation_sees_the_same_samples():
    """Two micro-steps of 2 clips on 3 ranks make the same global batch as one of 12 on one."""
    order = SampleOrder(10, seed=0)
    assert taken(order, 2, 3, 0, 2) == taken(order, 12, 1, 0, 1)


def test_resuming_on_other_ranks_continues():
    order = SampleOrder(10, seed=0)
    whole = taken(order, 3, 4, 0, 8)
    assert taken(order, 3, 4, 0, 5) + taken(order, 6, 2, 60, 3) == whole


@pytest.mark.parametrize("wrong", [{"micro_batch": 0}, {"rank": 2}, {"rank": -1}, {"start": -1}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="0 <= rank < world_size"):
        BatchOrder(SampleOrder(10, 0), **({"micro_batch": 1, "rank": 0, "world_size": 2} | wrong))
    with pytest.raises(ValueError, match="num_samples must be 1 or more"):
        SampleOrder(0, 0)
    with pytest.raises(IndexError, match="positions count from 0"):
        SampleOrder(3, 0)[-1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for i in range(5):
        write_video(root / f"{i}.mp4", frames=12 + i)
    return ClipDataset(build_manifest(root), ClipRule(3, 2), VideoFrames(root, (16, 16)), flip=True)


def test_workers_survive_objects_that_must_not_be_forked(dataset, real_videos):
    """A decord reader in a reference cycle of this process: a forked worker that collected it would crash."""
    decord = pytest.importorskip("decord", reason="needs decord")
    holder: dict = {"reader": decord.VideoReader(str(real_videos / "bigbuckbunny.mp4"))}
    holder["itself"] = holder
    del holder
    loader = build_loader(dataset, SampleOrder(5, seed=4), 1, 0, 1, workers=2)
    assert len(list(islice(loader, 4))) == 4
    gc.collect()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_clips_of_the_order(dataset, workers):
    order = SampleOrder(5, seed=4)
    loader = build_loader(dataset, order, micro_batch=2, rank=1, world_size=2, start=4, workers=workers)
    for step, batch in enumerate(islice(loader, 4)):
        keys = [order[4 + 4 * step + 2 + i] for i in range(2)]
        assert torch.equal(batch["clip"], torch.stack([dataset[key]["clip"] for key in keys]))
        assert batch["clip"].shape == (2, 3, 3, 16, 16) and batch["clip"].dtype == torch.uint8
        assert batch["video"].tolist() == [index for _, index in keys] and batch["label"].tolist() == [-1, -1]


def test_the_order_must_be_of_the_dataset(dataset):
    with pytest.raises(ValueError, match="over 6 samples, the dataset has 5"):
        build_loader(dataset, SampleOrder(6, 0), 1, 0, 1)
