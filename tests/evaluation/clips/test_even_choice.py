"""Where a protocol takes some of many real clips whose order is that of their classes, they are of all classes."""

import dataclasses
from collections import Counter

import pytest
from data.classes import SHADE, write_card, write_classes

from sparsevid.evaluation.clips.choice import take_evenly
from sparsevid.evaluation.clips.clips import choose_clips
from sparsevid.evaluation.distortions import STRENGTHS
from sparsevid.evaluation.protocols import DEFAULT_PROTOCOLS, Protocol, list_protocols, load_protocol
from sparsevid.evaluation.sensitivity import DistortedClips
from sparsevid.runs.config import RunConfig

OWN = [name for name in DEFAULT_PROTOCOLS.values() if name.startswith("sparsevid/")]


def short(name: str, **changes) -> Protocol:
    """A protocol for tiny videos."""
    return dataclasses.replace(load_protocol(name), frames=2, real_stride=1, size=None, split="all", **changes)


def labels(clips) -> Counter:
    """How many clips are of each class, by their pixels."""
    return Counter(int(clip.float().mean()) // SHADE for _, clip in clips)


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sorted")
    return write_card(folder, write_classes(folder / "data", [6] * 12))


@pytest.mark.parametrize("name", OWN)
def test_fewer_real_clips_than_there_are_are_of_all_classes(card, name):
    protocol = short(name)
    taken = choose_clips(card, "real", protocol, limit=24)
    found = labels(taken)
    assert len(taken) == 24 and len(found) >= 9
    if protocol.real_selection == "balanced":
        assert set(found.values()) == {2} and len(found) == 12
    other = choose_clips(card, "real", protocol, limit=24, seed=1)
    assert taken.ids != other.ids and taken.ids == choose_clips(card, "real", protocol, limit=24).ids
    assert set(choose_clips(card, "real", protocol, limit=12).ids) <= set(taken.ids)


def test_a_default_takes_no_clips_by_their_names():
    """Neither of a detector nor of a run's scores; those of before stay under their names, and take what they took."""
    for name in (*OWN, RunConfig().monitor.protocol):
        protocol = load_protocol(name)
        assert {protocol.real_selection, protocol.fake_selection} <= {"balanced", "random"}
    assert {"sparsevid/v1", "sparsevid/v1-state-dict", "sparsevid/video-is-v1"} < set(list_protocols())


def test_a_protocol_of_before_takes_the_first(card):
    assert labels(choose_clips(card, "real", short("sparsevid/fd-transnetv2-v1"), limit=6)) == {0: 6}


def test_all_real_clips_are_the_same_by_both_versions(card):
    for old, new in (("sparsevid/v1", "sparsevid/v2"), ("sparsevid/v1-state-dict", "sparsevid/v2-state-dict")):
        assert choose_clips(card, "real", short(old)).ids == choose_clips(card, "real", short(new)).ids


def test_damaged_clips_are_of_the_classes_of_the_undamaged(card):
    clips = choose_clips(card, "real", short("sparsevid/fd-transnetv2-v2"), limit=24)
    assert set(labels(DistortedClips(clips, "freezing", STRENGTHS[0], 0).read(0, 24)).values()) == {2}


def test_videos_without_classes_are_drawn_over_all(card):
    """A folder that no card speaks of, real or generated: its own folders may be classes."""
    for role in ("real", "fake"):
        protocol = short("sparsevid/fd-transnetv2-v2")
        taken = choose_clips(card.parent / "data", role, protocol, limit=24)
        assert len(labels(taken)) >= 9
        assert taken.ids != choose_clips(card.parent / "data", role, protocol, limit=24, seed=1).ids


def test_classes_take_turns_until_they_are_empty():
    starts = [[0, 9], [3], [5, 7, 8], []]
    assert take_evenly([[1, 0], [2, 3]], starts, 2) == [(1, 3), (2, 5)]
    assert take_evenly([[1, 0], [2, 3]], starts, 3) == [(0, 0), (1, 3), (2, 5)]
    assert take_evenly([[1, 0], [2, 3]], starts, 5) == [(0, 0), (0, 9), (1, 3), (2, 5), (2, 7)]
    assert take_evenly([[2, 3], [1, 0]], starts, None) == [(v, s) for v, each in enumerate(starts) for s in sorted(each)]
    assert take_evenly([], [], 3) == []
