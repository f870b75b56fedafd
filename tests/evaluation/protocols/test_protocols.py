"""Protocols: strict, complete, what the published ones say, and what they are called."""

import dataclasses
import fnmatch
import json

import pytest
from omegaconf import OmegaConf

from sparsevid.evaluation.detectors import DETECTORS, detector_class
from sparsevid.evaluation.metrics.table import METRICS
from sparsevid.evaluation.protocols import DEFAULT_PROTOCOLS, Protocol, list_protocols, load_protocol, with_fields
from sparsevid.evaluation.protocols.protocol import ADDED

NAME = "sparsevid/fd-transnetv2-v1"
PUBLISHED = {
    *(f"stylegan-v/{name}" for name in ("fvd2048_16f", "fvd2048_128f", "fvd2048_128f_subsample8f")),
    *(f"latte/{name}" for name in ("ucf101", "sky", "taichi", "ffs")),
    "cd-fvd",
}


def write(folder, **changes):
    """A protocol file: the package's own under another name, with changes; the value "remove" leaves a key out."""
    values = {**load_protocol(NAME).as_dict(), "name": "mine/v1", **changes}
    path = folder / "mine.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in values.items() if v != "remove"})))
    return path


def test_every_protocol_of_the_package_loads_under_its_own_name_and_can_be_computed():
    assert {NAME, "sparsevid/v1"} | PUBLISHED <= set(list_protocols())
    for name in list_protocols():
        protocol = load_protocol(name)
        assert protocol.name == name
        detector = detector_class(protocol.detector)
        assert set(protocol.detector_options) <= set(detector.OPTIONS)
        assert all(METRICS[metric].needs in detector.outputs() for metric in protocol.metrics)
        assert protocol.frames >= detector.min_frames
        assert Protocol.from_dict(json.loads(json.dumps(protocol.as_dict()))) == protocol


def test_every_detector_has_a_default_protocol_of_its_own():
    assert set(DEFAULT_PROTOCOLS) == set(DETECTORS)
    for detector, name in DEFAULT_PROTOCOLS.items():
        assert load_protocol(name).detector == detector


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        ("stylegan-v/fvd2048_16f", {"frames": 16, "real_stride": 1, "fake_stride": 1, "real_min_frames": 16}),
        ("stylegan-v/fvd2048_128f", {"frames": 128, "real_stride": 1, "fake_stride": 1, "real_min_frames": 128}),
        ("stylegan-v/fvd2048_128f_subsample8f", {"frames": 16, "real_stride": 8, "fake_stride": 8, "real_min_frames": 128}),
        ("stylegan-v/fvd2048_*", {"real_selection": "sorted", "real_count": 2048, "fake_start": "first", "split": "all"}),
        ("latte/*", {"frames": 16, "fake_stride": 1, "real_selection": "random", "real_count": 2048, "split": "train"}),
        ("latte/ucf101", {"real_stride": 3, "real_min_frames": 48}),
        ("latte/sky", {"real_stride": 3, "real_min_frames": 48}),
        ("latte/ffs", {"real_stride": 3, "real_min_frames": 48}),
        ("latte/taichi", {"real_stride": 6, "real_min_frames": 96}),
        ("cd-fvd", {"detector": "videomae-v2", "real_count": None, "fake_count": 2048, "seed": 42, "fake_start": "random"}),
        (
            "sparsevid/v1",
            {"real_start": "all", "real_count": None, "lossless": True, "split": "both", "covariance": "unbiased"},
        ),
    ],
)
def test_the_published_protocols_are_as_their_code(names, facts):
    """Of spec and public code; the detector of published FVD is the TorchScript file, its covariance divides by N."""
    found = fnmatch.filter(list_protocols(), names)
    for protocol in map(load_protocol, found):
        assert {key: getattr(protocol, key) for key in facts} == facts
        if protocol.name in PUBLISHED:
            assert (protocol.covariance, protocol.clips_per_video, protocol.metrics) == ("biased", 1, ("frechet",))
            assert protocol.real_start == "random" and protocol.size == (256, 256)
            assert protocol.name == "cd-fvd" or protocol.detector == "i3d-torchscript"
            assert protocol.geometry == "stored"  # they read images by Pillow and videos by torchvision, which turn nothing
    assert found


RELEASED = {  # a line is added for a new protocol, and none ever changes
    "sparsevid/stream-v1": "6546135a677fe1e317dcf15a65a7d430192192e62c05ba2eb3b101f84a74c7f4",
    "sparsevid/jedi-v1": "df81bd0a4454edbd6d8e88c0056c507dcbae2c4abfbe378aaf55d8069089c7d6",
    "sparsevid/fvmd-lk-v1": "b9a21d8d4f02cd7dd5e956200bd9e2563bfadcec86c72746f5b74135ec4ae43c",
    "adm/fid-50k": "88f4b63ea241de89bc7df3b14ee6248175d24ff4e26c28381d899729a1bc4fe1",
    "coco/fid-30k": "2f7c5a6f002175017dae46d59fa77fa76956b3dff6320ac82a7633007b8eb122",
    "sparsevid/clip-score-v1": "d585764f440d46c7ba01091149279a1e1b0feb0b76a32cf4cfa91dd75a9701d4",
    "cd-fvd": "4d067e3d8401e2587aff188394279de879f34463dd8f6380afef003ee2f9fd69",
    "latte/ffs": "4e562e62fa0307139b8e7aec5376968a8d87d0432afd343d6c94e456413e79db",
    "latte/sky": "34a311b3d0281d77005cc99794caef85fdc4d5e01303238ed990b9ecd56b9a76",
    "latte/taichi": "9657d039b21333b2573ec755880a5e98677a650921849a5eb0ac07006740582a",
    "latte/ucf101": "1a4ecb33cdd158e1a7fa0573fb9e74a1b1e9ddbcf4b9acfff455f3e5f21af3e2",
    "sparsevid/fd-transnetv2-v1": "72eed4227fa7bab06a0f03d7d318613da401fafa2b990f449d02db9f726fbb91",
    "sparsevid/fd-transnetv2-v2": "aad5c0afe2385a00d613217455475146d7672e18daf3352f4e18cb923c2fc7ae",
    "sparsevid/fid-v1": "dcdc51557645a91a0248dc454558022ebf687b14b482cad1fabe159ce885b09b",
    "sparsevid/is-v1": "fdc39e17dd4cfa12a7996fbd9a7977ec5aa5c23949cf7fa87a7a6d5b49c27ab9",
    "sparsevid/v1": "8a6bc521fb1d3042a291d8b037d2e739c2cb10739ee8e5236becced803efafa1",
    "sparsevid/v1-state-dict": "f21c4e892610b7d1282df56e6b31f885e354ff6606872756bf1ec195e5382ee3",
    "sparsevid/v2": "fe6b664436e5392bd1b5a5e7a2d154f361c5149221153a2452900b429b252c59",
    "sparsevid/v2-state-dict": "54b376fcf3b32a0d1089c59023b254b5137bbaee7175a582b8f0c29b3600c980",
    "sparsevid/video-is-v1": "c5caa434b42627ccbec4f1affa746defa808a36102a67e002a172438ba41e315",
    "sparsevid/video-is-v2": "e58f31af3d0dcf13c74bead92c61f534517f76a6763678479cbc6780534e953d",
    "stylegan-v/fvd2048_128f": "6dea6332d106485a27d7ead68cdbdbd4aeb8ff9b3b72c69fdb0cc40093dde8ee",
    "stylegan-v/fvd2048_128f_subsample8f": "5083e8194ac8a3de7dfb230edb1d898fc4954bcee504bf9405d04151c06ad1f9",
    "stylegan-v/fvd2048_16f": "f9aa0f688ca58968fac87a7ff563bc85386ecfad0978a4a9c2593ed5c2905d31",
    "stylegan-v/isv2048_ucf": "8872c8aa6d50df7923f2e4ef55caf93e681f64cea9e8788c1341d6fa9edddeb4",
}


def test_a_released_protocol_never_changes():
    assert {name: load_protocol(name).fingerprint for name in list_protocols()} == RELEASED


def test_a_field_that_was_added_makes_no_other_protocol_where_it_says_what_held_before():
    """Scores and features under a protocol stay comparable with those that are made once it has one field more."""
    protocol = load_protocol(NAME)
    before = {key: value for key, value in protocol.as_dict().items() if key != "geometry"}
    assert Protocol.from_dict(before) == protocol and protocol.geometry == "stored"
    assert dataclasses.replace(protocol, geometry="display").fingerprint != protocol.fingerprint


def test_a_protocol_survives_a_file(tmp_path):
    changes = {
        "real_count": None,
        "clips_per_video": 2,
        "covariance": "biased",
        "size": None,
        "detector_options": {"eps": 1e-3},
    }
    protocol = load_protocol(write(tmp_path, **changes))
    assert {key: getattr(protocol, key) for key in changes} == changes


@pytest.mark.parametrize("values", [{}, {"name": "a", "size": [1, 1], "metrics": []}, {"size": 3, "metrics": []}])
def test_values_that_are_no_protocol_are_refused(values):
    with pytest.raises(ValueError, match="not the fields of a protocol.*name, detector, detector_options, metrics, frames"):
        Protocol.from_dict(values)


CHANGED = {
    "name": "x", "detector": "x", "detector_options": {"eps": 1.0}, "metrics": ("kid",), "frames": 1, "real_stride": 9,
    "fake_stride": 9, "real_start": "first", "fake_start": "random", "real_min_frames": 90, "fake_min_frames": 90,
    "size": None, "resize": "stretch", "real_count": 9, "fake_count": None, "clips_per_video": 1, "real_selection": "random",
    "fake_selection": "sorted", "seed": 9, "covariance": "biased", "split": "x", "lossless": True, "geometry": "display",
}  # fmt: skip


def test_the_fingerprint_depends_on_every_field():
    protocol = load_protocol(NAME)
    assert set(CHANGED) == {each.name for each in dataclasses.fields(Protocol)}
    prints = {dataclasses.replace(protocol, **{key: value}).fingerprint for key, value in CHANGED.items()}
    assert len(prints | {protocol.fingerprint}) == len(CHANGED) + 1


def test_a_file_that_is_older_than_a_field_means_what_it_meant_and_says_so(tmp_path, caplog):
    """The package's own say all."""
    for name in list_protocols():
        load_protocol(name)
    assert not caplog.records
    assert load_protocol(write(tmp_path, geometry="remove")) == load_protocol(write(tmp_path))
    assert "without geometry it means stored" in caplog.text


@pytest.mark.parametrize("key", [key for key in CHANGED if key not in ADDED])
def test_a_protocol_leaves_nothing_to_a_default(tmp_path, key):
    with pytest.raises(ValueError, match=f"missing {key}; a protocol leaves nothing to a default"):
        load_protocol(write(tmp_path, **{key: "remove"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": 8}, "unknown key 'frame'; did you mean 'frames'.*real_stride, fake_stride"),
        ({"frames": "eight"}, "mine.yaml: frames: .*eight"),
        ({"frames": 0}, "frames is at least 1, got 0"),
        ({"frames": None}, "mine.yaml: frames: "),
        ({"real_count": 1}, "real_count is at least 2, for a covariance, got 1"),
        ({"fake_count": 0}, "fake_count is at least 2"),
        (
            {"size": [48]},
            r"mine.yaml: size: |size is \[height, width\]",
        ),  # by OmegaConf, or by a version of it that lets it pass
        ({"size": [48, 0]}, r"size is \[height, width\], both at least 1, or null, got \[48, 0\]"),
        ({"seed": -1}, "seed is at least 0"),
        ({"covariance": "pooled"}, "one of unbiased, biased, got 'pooled'"),
        ({"real_start": "last"}, "real_start is one of random, first, all, got 'last'"),
        ({"resize": "fill"}, "resize is one of cover, stretch"),
        ({"fake_selection": "some"}, "fake_selection is one of spread, sorted, random"),
        ({"metrics": []}, "metrics names one or more metrics"),
        ({"metrics": ["kid", "kid"]}, "each once"),
        ({"metrics": "kid"}, "mine.yaml: metrics: "),
        ({"detector_options": {"eps": [1]}}, "detector_options.eps is a text or a number, got .1."),
        ({"real_count": None}, "every start of every video would be a clip; limit real_count or clips_per_video"),
        ({"geometry": "rotated"}, "geometry is one of stored, display, got 'rotated'"),
        ({"lossless": "perhaps"}, "mine.yaml: lossless: "),
        ({"seed": "${absent}"}, "mine.yaml: seed: .*absent"),
        ({"name": "sparsevid/new"}, "reserved"),
        ({"name": "latte/new"}, "reserved"),
        ({"name": "cd-fvd"}, "reserved"),
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


@pytest.mark.parametrize("name", ["fvd", "sparsevid/fd-transnetv2-v0", "sparsevid/../__init__", "latte", "absent.yaml"])
def test_unknown_protocols_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"unknown protocol.*{NAME}"):
        load_protocol(name)


def test_text_of_a_protocol_stays_as_it_was_typed(tmp_path):
    path = write(tmp_path, name="NAME", split="SPLIT", detector_options={"eps": 1e-3})
    path.write_text(path.read_text().replace("NAME", "2024_11").replace("SPLIT", "on"))
    protocol = load_protocol(path)
    assert (protocol.name, protocol.split, protocol.detector_options) == ("2024_11", "on", {"eps": 1e-3})


def test_changed_fields_make_another_protocol_and_what_is_the_same_does_not():
    before = load_protocol("latte/ucf101")
    changed = with_fields(before, ["real_stride=2", "size=[64,64]", "real_count=null", "resize=stretch", "seed=0"])
    assert (changed.real_stride, changed.size, changed.real_count, changed.resize) == (2, (64, 64), None, "stretch")
    assert changed.fingerprint != before.fingerprint and "real_stride=2" in changed.name and "seed" not in changed.name
    assert with_fields(before, [f"real_stride={before.real_stride}"]) is before
    assert with_fields(before, []) is before


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("real_strid=2", "unknown key 'real_strid'; did you mean 'real_stride'"),
        ("real_stride=0", "real_stride is at least 1, got 0"),
        ("real_stride=two", "real_stride"),
        ("name=mine", "the name follows from what is changed"),
        ("real_stride", "not of the form key=value"),
        ("resize=crop", "resize is one of cover, stretch"),
    ],
)
def test_an_unusable_field_is_named(option, reason):
    with pytest.raises(ValueError, match=reason):
        with_fields(load_protocol("latte/ucf101"), [option])
