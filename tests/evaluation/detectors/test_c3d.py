"""C3D against a second writing of TGANv2's description, with small random weights in the published forms."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsevid.evaluation.detectors import build_detector
from sparsevid.evaluation.detectors import c3d as module
from sparsevid.evaluation.detectors.c3d import C3D, MEAN_SHAPE, C3DDetector, load_network, preprocess

WIDTH, HIDDEN = 2, 6
LAYERS = ["conv1a", "conv2a", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b", "fc6", "fc7", "fc8"]
FULL_SHAPES = {
    "conv1a": (64, 3, 3, 3, 3),
    "conv2a": (128, 64, 3, 3, 3),
    "conv3a": (256, 128, 3, 3, 3),
    "conv3b": (256, 256, 3, 3, 3),
    "conv4a": (512, 256, 3, 3, 3),
    "conv4b": (512, 512, 3, 3, 3),
    "conv5a": (512, 512, 3, 3, 3),
    "conv5b": (512, 512, 3, 3, 3),
    "fc6": (4096, 8192),
    "fc7": (4096, 4096),
    "fc8": (101, 4096),
}


def draw_arrays() -> dict[str, np.ndarray]:
    """Arrays as Chainer writes them, of a network with `WIDTH` and `HIDDEN` channels."""
    random = np.random.default_rng(0)
    arrays = {}
    for layer in LAYERS:
        outputs, inputs, *kernel = FULL_SHAPES[layer]
        outputs = outputs if layer == "fc8" else HIDDEN if layer.startswith("fc") else outputs * WIDTH // 64
        inputs = {"conv1a": 3, "fc6": 8 * WIDTH * 16, "fc7": HIDDEN, "fc8": HIDDEN}.get(layer, inputs * WIDTH // 64)
        fan_in = inputs * np.prod(kernel, dtype=int)
        arrays[f"{layer}/W"] = random.normal(0, (2 / fan_in) ** 0.5, (outputs, inputs, *kernel)).astype(np.float32)
        arrays[f"{layer}/b"] = random.normal(0, 1, outputs).astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return draw_arrays()


@pytest.fixture(scope="module")
def mean() -> np.ndarray:
    return np.random.default_rng(1).uniform(80, 120, MEAN_SHAPE).astype(np.float32)


@pytest.fixture
def files(tmp_path, arrays, mean):
    """The two published files, shrunken."""
    np.savez(tmp_path / "conv3d_deepnetA_ucf.npz", **arrays)
    np.savez(tmp_path / "mean2.npz", mean=mean)
    return tmp_path / "conv3d_deepnetA_ucf.npz", tmp_path / "mean2.npz"


@pytest.fixture
def shrunken(files, monkeypatch):
    """The files, and detectors expecting their shapes."""
    monkeypatch.setattr(module, "load_network", lambda path, mean: load_network(path, mean, WIDTH, HIDDEN))
    return files


def draw_clips(count: int = 2, frames: int = 16, height: int = 60, width: int = 80) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, frames, height, width), dtype=torch.uint8, generator=generator)


def pool(x: Tensor, temporal: int) -> Tensor:
    """Maximum over (temporal, 2, 2), with what is left at the border."""
    x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2, 0, x.shape[-3] % temporal), value=-torch.inf)
    return x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, temporal)).amax(dim=(3, 5, 7))


def describe_c3d(clips: Tensor, arrays: dict[str, np.ndarray], mean: np.ndarray) -> Tensor:
    """Logits as TGANv2's class describes them, layer by layer."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv3d(x, tensors[f"{name}/W"], tensors[f"{name}/b"], padding=1).clamp_min(0)

    def full(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"{name}/W"].T + tensors[f"{name}/b"]

    swap = torch.zeros(3, 3, 1, 1, 1)
    swap[[0, 1, 2], [2, 1, 0]] = 128
    x = F.conv3d((clips - 128.0) / 128.0, swap)
    x = torch.stack([F.interpolate(frame, (112, 112), mode="bilinear", align_corners=True) for frame in x.unbind(2)], 2)
    x = x + (128 - torch.from_numpy(mean)[:, :, 8:120, 8:120])
    x = pool(conv(x, "conv1a"), 1)
    x = pool(conv(x, "conv2a"), 2)
    x = pool(conv(conv(x, "conv3a"), "conv3b"), 2)
    x = pool(conv(conv(x, "conv4a"), "conv4b"), 2)
    x = pool(conv(conv(x, "conv5a"), "conv5b"), 2)
    assert x.shape[2:] == (1, 4, 4)
    x = full(x.flatten(1), "fc6").clamp_min(0)
    return full(full(x, "fc7").clamp_min(0), "fc8")


def test_logits_are_those_of_the_description(shrunken, arrays, mean):
    detector = build_detector("c3d-ucf101", path=shrunken[0])
    clips = draw_clips()
    expected = describe_c3d(clips, arrays, mean)
    assert expected.std(dim=0).max() > 0.1
    torch.testing.assert_close(detector(clips), expected, rtol=1e-5, atol=1e-4)
    assert (detector.dim, detector.kind) == (101, "logits")


def test_shapes_are_those_of_the_published_network():
    with torch.device("meta"):
        network = C3D(torch.zeros(3, 16, 112, 112))
    assert [name for name, _ in network.named_children()] == LAYERS
    assert {layer: tuple(network.get_parameter(f"{layer}.weight").shape) for layer in LAYERS} == FULL_SHAPES


def test_a_clip_that_is_the_mean_becomes_zero():
    colour = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1, 1).expand(1, 3, 16, 30, 40)
    mean = torch.tensor([30.0, 20.0, 10.0]).reshape(3, 1, 1, 1).expand(3, 16, 112, 112)
    assert preprocess(colour, mean).abs().max() <= 1e-4


def test_resizing_keeps_the_corners():
    clips = draw_clips(height=37, width=51)
    resized = preprocess(clips, torch.zeros(3, 16, 112, 112)).flip(1)
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(resized[..., row, column], clips[..., row, column].float(), rtol=0, atol=1e-3)


def test_the_fingerprint_is_of_both_files(shrunken, mean):
    path, mean_path = shrunken
    first = C3DDetector.from_weights(path).fingerprint
    sums = [hashlib.sha256(each.read_bytes()).hexdigest() for each in (path, mean_path)]
    assert first == hashlib.sha256("".join(sums).encode()).hexdigest()
    np.savez(mean_path, mean=mean + 1)
    assert C3DDetector.from_weights(path).fingerprint != first


def test_arrays_that_the_network_lacks_are_passed_over_and_named(shrunken, arrays, caplog):
    np.savez(shrunken[0], **arrays, **{"bn6/gamma": np.zeros(1)})
    C3DDetector.from_weights(shrunken[0])
    assert "bn6/gamma" in caplog.text


def test_missing_arrays_are_named(files, arrays):
    np.savez(files[0], **{name: array for name, array in arrays.items() if name != "fc7/b"})
    with pytest.raises(ValueError, match=r"holds no weights of C3D.*missing.*fc7\.bias"):
        load_network(*files, WIDTH, HIDDEN)


def test_a_network_of_another_size_is_refused(files):
    with pytest.raises(ValueError, match="of another shape.*conv1a"):
        C3DDetector.from_weights(files[0])


def test_another_mean_is_refused(shrunken):
    path, mean_path = shrunken
    np.savez(mean_path, mean=np.zeros((3, 16, 112, 112)))
    with pytest.raises(ValueError, match=r"mean2\.npz holds .*accepted: 'mean' of shape \(3, 16, 128, 171\)"):
        C3DDetector.from_weights(path)


def test_without_the_mean_it_says_which_file_to_get(shrunken):
    path, mean_path = shrunken
    mean_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"mean2\.npz.*pfnet-research/tgan2"):
        C3DDetector.from_weights(path)


def test_truncated_and_pickled_files_are_refused(shrunken):
    path, _ = shrunken
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="damaged"):
        C3DDetector.from_weights(path)
    np.savez(path, **{"conv1a/W": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="damaged"):
        C3DDetector.from_weights(path)


@pytest.mark.parametrize("frames", [17, 32])
def test_other_lengths_are_refused(shrunken, frames):
    detector = C3DDetector.from_weights(shrunken[0])
    with pytest.raises(ValueError, match=f"takes clips of 16 frames, got {frames}"):
        detector(draw_clips(1, frames))


@pytest.mark.slow
def test_the_published_size_from_its_files(tmp_path, mean):
    random = np.random.default_rng(3)
    scale = {layer: (2 / np.prod(shape[1:])) ** 0.5 for layer, shape in FULL_SHAPES.items()}
    weights = {
        f"{layer}/W": random.standard_normal(shape, np.float32) * np.float32(scale[layer])
        for layer, shape in FULL_SHAPES.items()
    }
    biases = {f"{layer}/b": random.standard_normal(shape[0], np.float32) for layer, shape in FULL_SHAPES.items()}
    np.savez(tmp_path / "conv3d_deepnetA_ucf.npz", **weights, **biases)
    np.savez(tmp_path / "mean2.npz", mean=mean)
    detector = build_detector("c3d-ucf101", path=tmp_path / "conv3d_deepnetA_ucf.npz")
    clips = draw_clips(1)
    expected = describe_c3d(clips, weights | biases, mean)
    torch.testing.assert_close(detector(clips), expected, rtol=1e-4, atol=1e-3 * expected.abs().max().item())


class Script(nn.Module):
    """A network with the call of StyleGAN-V's C3D: uint8 clips of any size in, probabilities out."""

    def __init__(self, classes: int = 101, softmax: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16, classes)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        logits = self.layer(x.float().mean(dim=[3, 4]).flatten(1) / 255)
        return logits.softmax(dim=1) if self.softmax else logits


@pytest.fixture
def script(tmp_path):
    network = Script()
    path = tmp_path / "c3d_ucf101.pt"
    torch.jit.script(network).save(path)
    return path, network


def test_the_softmax_of_the_scripts_logits_is_what_it_gives(script):
    path, network = script
    clips = draw_clips()
    detector = build_detector("c3d-ucf101-torchscript", path=path, trust=True)
    torch.testing.assert_close(detector(clips).softmax(dim=1), network(clips).detach())
    assert detector.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_probability_of_zero_stays_finite(tmp_path):
    network = Script()
    network.layer.bias.data[0] = -1e4
    path = tmp_path / "certain.pt"
    torch.jit.script(network).save(path)
    clips = draw_clips()
    assert network(clips)[:, 0].eq(0).all()
    found = build_detector("c3d-ucf101-torchscript", path=path, trust=True)(clips)
    assert found.isfinite().all()
    torch.testing.assert_close(found.softmax(dim=1), network(clips).detach())


def test_a_script_runs_only_if_trusted(script):
    with pytest.raises(ValueError, match="--trust-detector"):
        build_detector("c3d-ucf101-torchscript", path=script[0])


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Script(classes=400), r"it gives \(2, 400\)"),
        (Script(softmax=False), "no probabilities"),
        (nn.Conv3d(3, 4, 3), "does not take uint8 clips"),
    ],
)
def test_a_script_of_another_kind_is_refused(tmp_path, network, reason):
    path = tmp_path / "other.pt"
    torch.jit.script(network).save(path)
    detector = build_detector("c3d-ucf101-torchscript", path=path, trust=True)
    with pytest.raises(ValueError, match=f"detector of another kind: .*{reason}"):
        detector(draw_clips())
