"""Inception-2015 against torch-fidelity's own extractor, with random weights in its own form."""

import importlib.util

import pytest
import torch
from torch import Tensor

from sparsevid.evaluation.detectors import build_detector, detector_class
from sparsevid.evaluation.detectors.base import Detector
from sparsevid.evaluation.detectors.inception import WEIGHTS

library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="needs torch-fidelity (extra `fid`)")

NAMES = {"inception-2015": "2048", "inception-2015-logits": "logits_unbiased"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the form of the published one: torchvision-like names, random values, statistics that are not 0 and 1."""

    class Blank(library.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict: dict) -> None:
            """Keep what was drawn."""

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save({}, path)
    state = Blank("blank", ["2048"], feature_extractor_weights_path=path).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, value in state.items():
        if name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.1, generator=generator)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module", params=NAMES)
def detector(request, weights) -> Detector:
    return build_detector(request.param, path=weights)


def draw_images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_features_are_those_of_torch_fidelity(detector, weights):
    images = draw_images(2, 40, 52)
    theirs = library.FeatureExtractorInceptionV3("direct", [NAMES[detector.name]], feature_extractor_weights_path=weights)
    (expected,) = theirs(images)
    found = detector(images.unsqueeze(2))
    assert found.equal(expected)
    assert found.shape == (2, detector.dim)
    assert found.std(dim=0).max() > 0


def test_the_detector_of_adm_gives_all_outputs_of_one_pass(weights):
    """Spatial features by the block that the graph of 2015 calls mixed_6, out of its input: a row of channels a position."""
    images, found = draw_images(2, 40, 52), build_detector("inception-2015-adm", path=weights)
    inputs = []
    found.network.Mixed_6d.register_forward_pre_hook(lambda module, given: inputs.append(given[0].clone()))
    vectors = found(images.unsqueeze(2))
    assert vectors.shape == (2, found.dim) == (2, 2048 + 2023 + 1008)
    theirs = library.FeatureExtractorInceptionV3("direct", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
    for name, expected in zip(("features", "logits"), theirs(images), strict=True):
        assert vectors[:, found.outputs()[name]].equal(expected)
    with torch.no_grad():
        spatial = theirs.Mixed_6d.branch1x1(inputs[0])[:, :7]
    assert vectors[:, found.outputs()["spatial"]].equal(spatial.permute(0, 2, 3, 1).reshape(2, -1))
    assert spatial.shape == (2, 7, 17, 17) and spatial.std() > 0


def test_it_says_what_it_is():
    features, logits = map(detector_class, NAMES)
    assert (features.metric, features.dim, features.kind) == ("FID", 2048, "features")
    assert (logits.metric, logits.dim, logits.kind) == ("IS", 1008, "logits")


def test_the_layers_are_those_that_torch_fidelity_takes():
    default = library.FeatureExtractorInceptionV3.get_default_feature_layer_for_metric
    assert list(NAMES.values()) == [default("fid"), default("isc")]
    assert [detector_class(name).layer for name in NAMES] == list(NAMES.values())


def test_the_published_file_is_the_one_torch_fidelity_downloads():
    assert WEIGHTS.url == library.URL_INCEPTION_V3
    (checksum,) = WEIGHTS.sha256
    # Released files carry the first digits of their checksum.
    assert WEIGHTS.file == f"weights-inception-2015-12-05-{checksum[:8]}.pth"


def test_videos_are_refused(detector):
    with pytest.raises(ValueError, match=r"clips of 4 frames; take a protocol with frames = 1"):
        detector(draw_images(4, 16, 16).transpose(0, 1).unsqueeze(0))


def test_building_leaves_random_numbers_alone(weights):
    before = torch.get_rng_state()
    build_detector("inception-2015", path=weights)
    assert torch.get_rng_state().equal(before)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match=r"other\.pth holds no weights of Inception-2015: .*Missing key"):
        build_detector("inception-2015", path=path)


def test_a_truncated_file_is_refused(weights, tmp_path):
    path = tmp_path / "cut.pth"
    path.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cut.pth is damaged"):
        build_detector("inception-2015", path=path)


class Malicious:
    """Would create a file when it is unpickled, as the library by itself does with weight files."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_code_in_a_weight_file_is_not_run(tmp_path):
    path, sign = tmp_path / "code.pth", tmp_path / "was-run"
    torch.save({"fc.weight": Malicious(str(sign))}, path)
    with pytest.raises(ValueError, match="more than tensors"):
        build_detector("inception-2015", path=path)
    assert not sign.exists()


def test_without_the_library_it_says_what_to_install(monkeypatch, weights):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_fidelity" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"sparsevid\[fid\]\""):
        build_detector("inception-2015", path=weights)
