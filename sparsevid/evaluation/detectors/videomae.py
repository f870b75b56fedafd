"""VideoMAE v2 (Wang et al., arXiv 2303.16727) as a detector: the network of content-debiased FVD (Ge et al., arXiv 2404.12391).

The network is written here: `transformers` names and splits the layers otherwise and does not resample positions over time,
so that converting the public file would take as much code. Names and order of keys are the public file's.

Dimensions: B clips, C = 3 channels, T frames, H×W pixels, p patch size, n = T/2 · (224/p)² tokens, D width, h heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sparsevid.evaluation.detectors.base import NetworkDetector, Setting
from sparsevid.evaluation.detectors.weights import WeightFile, obtain, read_state_dict
from sparsevid.models.attention import attend_sdpa
from sparsevid.models.convert.conversion import check_weights
from sparsevid.models.embeddings import sincos

WEIGHTS = WeightFile(
    file="vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    url="https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/internvideo/videomaev2/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    sha256=("5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70",),
    hint=(
        "It is VideoMAE v2's ViT-g fine-tuned on Something-Something v2, which cd-fvd downloads "
        "(also mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth of huggingface.co/OpenGVLab/InternVideoMAE_models), 2 GB."
    ),
)


@dataclass(frozen=True)
class VideoMAESpec:
    """Sizes of a network; the defaults are those of ViT-g/14, the one with public weights.

    Attributes:
        size: height and width of a frame, pixels.
        patch: height and width of a token, pixels.
        frames: frames of a clip for which the positions stand.
        width: channels of a token, D.
        depth: layers.
        heads: attention heads h, which divide D.
        mlp_width: hidden channels of a layer's MLP.
        classes: outputs of the classifier, which the features don't use but the public file has.
    """

    size: int = 224
    patch: int = 14
    frames: int = 16
    width: int = 1408
    depth: int = 40
    heads: int = 16
    mlp_width: int = 6144
    classes: int = 174


TUBELET = 2  # frames of a token


class VideoMAE(nn.Module):
    """The fine-tuned encoder: tokens of 2 frames × 14×14 pixels, 40 layers with attention over all tokens of a clip.

    Args:
        spec: the sizes.
    """

    positions: Tensor

    def __init__(self, spec: VideoMAESpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbedding(spec)
        self.blocks = nn.ModuleList(Block(spec, Attention(spec)) for _ in range(spec.depth))
        self.fc_norm = nn.LayerNorm(spec.width, eps=1e-6)
        self.head = nn.Linear(spec.width, spec.classes)  # unused; with it the public file loads strictly
        self.register_buffer("positions", position_table(spec), persistent=False)  # (T/2, H/p, W/p, D)

    def forward(self, video: Tensor) -> Tensor:
        """Features (B, D), normalised means over tokens, of float video (B, 3, T, H, W) in [0, 1]."""
        x = self.patch_embed(video) + self.positions_for(video.shape[2])  # (B, n, D)
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x.mean(dim=1))

    def positions_for(self, frames: int) -> Tensor:
        """Positions (n, D) of a clip's tokens; for other than `spec.frames` frames resampled over time, as cd-fvd does."""
        tokens, known = frames // TUBELET, self.spec.frames // TUBELET
        if tokens == known:
            return rearrange(self.positions, "t h w d -> (t h w) d")
        # The scale, not the size, sets where is sampled; a tenth of a token keeps rounding from losing one.
        scale = ((tokens + 0.1) / known, 1.0, 1.0)
        table = rearrange(self.positions, "t h w d -> 1 d t h w")
        return rearrange(F.interpolate(table, scale_factor=scale, mode="trilinear"), "1 d t h w -> (t h w) d")


class PatchEmbedding(nn.Module):
    """Video to tokens: one linear map of each tubelet of 2×p×p pixels."""

    def __init__(self, spec: VideoMAESpec) -> None:
        super().__init__()
        tubelet = (TUBELET, spec.patch, spec.patch)
        self.proj = nn.Conv3d(3, spec.width, kernel_size=tubelet, stride=tubelet)

    def forward(self, video: Tensor) -> Tensor:
        return rearrange(self.proj(video), "b d t h w -> b (t h w) d")


class Block(nn.Module):
    """A layer: attention, then an MLP, each on normalised tokens and added to them."""

    def __init__(self, spec: VideoMAESpec, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(spec.width, eps=1e-6)
        self.mlp = Mlp(spec)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention whose queries and values have a bias and whose keys have none."""

    def __init__(self, spec: VideoMAESpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.q_bias = nn.Parameter(torch.zeros(spec.width))
        self.v_bias = nn.Parameter(torch.zeros(spec.width))
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.proj = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = rearrange(F.linear(x, self.qkv.weight, bias), "b n (three h d) -> three b n h d", three=3, h=self.heads)
        # Fused, since the scores of one clip of ViT-g take 268 MB in each layer.
        return self.proj(rearrange(attend_sdpa(q, k, v), "b n h d -> b n (h d)"))


class Mlp(nn.Module):
    """Two linear maps around an exact GELU."""

    def __init__(self, spec: VideoMAESpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.width, spec.mlp_width)
        self.fc2 = nn.Linear(spec.mlp_width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def position_table(spec: VideoMAESpec) -> Tensor:
    """Sin-cos positions of all tokens, counted through a clip: float32 (T/2, H/p, W/p, D), sines in the even channels."""
    side = spec.size // spec.patch
    table = sincos(np.arange(spec.frames // TUBELET * side * side), spec.width)
    table = rearrange(table, "(t h w) (kind i) -> t h w (i kind)", h=side, w=side, kind=2)
    return torch.from_numpy(np.ascontiguousarray(table, dtype=np.float32))


def preprocess(clips: Tensor, size: int) -> Tensor:
    """Scale to [0, 1] and stretch to a square, bilinearly and without antialiasing, as cd-fvd does.

    Args:
        clips: uint8 (B, 3, T, H, W).
        size: height and width to get, pixels.

    Returns:
        float32 (B, 3, T, size, size).
    """
    frames = rearrange(clips, "b c t h w -> (b c) t h w").float() / 255
    frames = F.interpolate(frames, size=(size, size), mode="bilinear", align_corners=False)
    return rearrange(frames, "(b c) t h w -> b c t h w", c=3)


class VideoMAEDetector(NetworkDetector):
    """The normalised mean of ViT-g's tokens, 1408 numbers a clip.

    Sixteen frames are what the network was trained on; other even numbers are taken with resampled positions. An odd
    number is refused, because a token holds two frames and the last one would be lost.
    """

    name = "videomae-v2"
    metric = "content-debiased FVD (VideoMAE v2)"
    preprocessing = "divided by 255; stretched to 224x224, bilinear, not antialiased"
    dim = 1408
    min_frames = TUBELET
    network: VideoMAE

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "VideoMAEDetector":
        """Build the detector; see `Detector`."""
        cls.complete_options(options)
        path, fingerprint = obtain(WEIGHTS, path, trust=trust)
        state = read_state_dict(path)
        try:
            network = load_network(state, VideoMAESpec())
        except ValueError as error:
            raise ValueError(f"{path} holds no weights of VideoMAE v2 ViT-g/14: {error}") from error
        return cls(network, fingerprint)

    def extract(self, clips: Tensor) -> Tensor:
        """Features (B, 1408) of clips (B, 3, T, H, W), T even."""
        if clips.shape[2] % TUBELET:
            raise ValueError(f"detector {self.name!r} takes an even number of frames, got {clips.shape[2]}")
        return self.network(preprocess(clips, self.network.spec.size))


def load_network(state: Mapping[str, Tensor], spec: VideoMAESpec) -> VideoMAE:
    """Build a network around the tensors of a state dict, in float32, without a second copy of them.

    Raises:
        ValueError: the state dict has other keys or shapes.
    """
    with torch.device("meta"):
        network = VideoMAE(spec)
    check_weights(state, {name: tuple(value.shape) for name, value in network.state_dict().items()})
    network.load_state_dict(state, assign=True)
    return network.float()
