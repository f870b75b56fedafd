"""Protocols: strict, complete, and what they are called."""

import dataclasses
import json

import pytest
from omegaconf import OmegaConf

from sparsevid.evaluation.detectors import DETECTORS
from sparsevid.evaluation.protocols import DEFAULT_PROTOCOLS, Protocol, ProtocolRecord, list_protocols, load_protocol

NAME = "sparsevid/fd-transnetv2-v1"


def write(folder, **changes):
    """A protocol file: the package's own under another name, with changes; the value "remove" leaves a key out."""
    values = {**load_protocol(NAME).as_dict(), "name": "mine/v1", **changes}
    path = folder / "mine.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in values.items() if v != "remove"})))
    return path


def test_every_protocol_of_the_package_loads_under_its_own_name():
    assert NAME in list_protocols()
    for name in list_protocols():
        protocol = load_protocol(name)
        assert protocol.name == name and protocol.detector in DETECTORS


def test_every_detector_has_a_default_protocol_of_its_own():
    assert set(DEFAULT_PROTOCOLS) == set(DETECTORS)
    for detector, name in DEFAULT_PROTOCOLS.items():
        assert load_protocol(name).detector == detector


def test_a_released_protocol_never_changes():
    assert load_protocol(NAME).fingerprint == "227194bf0590ca7e8829ac835b75806b28308337a48610e8861b5fd2c16b4b9f"


def test_a_protocol_survives_json_and_a_file(tmp_path):
    protocol = load_protocol(write(tmp_path, count=None, clips_per_video=2, covariance="biased"))
    assert (protocol.count, protocol.clips_per_video, protocol.covariance) == (None, 2, "biased")
    assert Protocol.from_dict(json.loads(json.dumps(protocol.as_dict()))) == protocol


@pytest.mark.parametrize("values", [{}, {"name": "a", "size": [1, 1]}, {"size": 3}])
def test_values_that_are_no_protocol_are_refused(values):
    with pytest.raises(ValueError, match="not the fields of a protocol.*name, detector, frames"):
        Protocol.from_dict(values)


def test_the_fingerprint_depends_on_every_field():
    protocol = load_protocol(NAME)
    changed = {"name": "x", "detector": "x", "split": "x", "size": (1, 1), "count": None, "clips_per_video": 1}
    changed |= {"covariance": "biased", "frames": 1, "real_stride": 9, "fake_stride": 9, "seed": 9}
    assert set(changed) == {each.name for each in dataclasses.fields(Protocol)}
    prints = {dataclasses.replace(protocol, **{key: value}).fingerprint for key, value in changed.items()}
    assert len(prints | {protocol.fingerprint}) == len(changed) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": 8}, "unknown key 'frame'; did you mean 'frames'.*real_stride, fake_stride"),
        ({"seed": "remove"}, "missing seed"),
        ({"frames": "eight"}, "mine.yaml: frames: .*eight"),
        ({"frames": 0}, "frames is at least 1, got 0"),
        ({"frames": None}, "mine.yaml: frames: "),
        ({"count": 1}, "count is at least 2"),
        ({"size": [48]}, "mine.yaml: size: "),
        ({"size": [48, 0]}, "width is at least 1, got 0"),
        ({"seed": -1}, "seed is not negative"),
        ({"covariance": "pooled"}, "one of unbiased, biased, got 'pooled'"),
        ({"name": "sparsevid/new"}, "reserved"),
        ({"name": NAME, "frames": 4}, "reserved"),
    ],
)
def test_unusable_protocols_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_protocol(write(tmp_path, **changes))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_files_that_hold_no_mapping_are_refused(tmp_path, text):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="p.yaml"):
        load_protocol(path)


@pytest.mark.parametrize("name", ["fvd", "sparsevid/fd-transnetv2-v0", "sparsevid/../__init__", "absent.yaml"])
def test_unknown_protocols_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"unknown protocol.*{NAME}"):
        load_protocol(name)


def test_a_record_is_written_as_json_and_replaces_an_older_one(tmp_path):
    protocol = load_protocol(NAME)
    record = ProtocolRecord(
        metric="FD-TransNetV2",
        score=1.25,
        protocol=protocol.as_dict(),
        protocol_fingerprint=protocol.fingerprint,
        detector={"name": "transnetv2", "fingerprint": "0", "preprocessing": "ünï"},
        real={"clips": 2},
        fake={"clips": 3},
        warnings=("few clips",),
        versions={},
    )
    path = tmp_path / "score.json"
    dataclasses.replace(record, score=7.0).save(path)
    record.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == record.as_dict()
    assert ProtocolRecord(**record.as_dict()).as_dict() == record.as_dict()
    assert [each.name for each in tmp_path.iterdir()] == ["score.json"]
