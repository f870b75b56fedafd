"""V-JEPA (Bardes et al., arXiv 2404.08471) as a detector: the features of JEDi (Luo et al., arXiv 2410.05203).

JEDi takes the encoder ViT-H/16 and, behind it, the attentive pooler of the probe that was trained on Something-Something v2.
Names of layers are those of the public files.

Dimensions: B clips, C = 3 channels, T = 16 frames, H×W pixels, n = T/2 · (H/16)² tokens, D width, h heads.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from sparsevid.evaluation.detectors.base import Detector, Setting
from sparsevid.evaluation.detectors.videomae import Block, Mlp, PatchEmbedding, VideoMAESpec, preprocess
from sparsevid.evaluation.detectors.weights import WeightFile, obtain
from sparsevid.models.attention import attend_sdpa
from sparsevid.models.convert.checkpoint_file import read_pickle
from sparsevid.models.convert.conversion import check_weights

SPEC = VideoMAESpec(patch=16, width=1280, depth=32, mlp_width=5120)  # ViT-H/16; `classes` has no meaning here
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENCODERS = ("target_encoder", "encoder")  # names of the encoder in a checkpoint; the first that is there is taken
PROBE_ENTRY = "classifier"
_PREFIXES = ("module.", "backbone.")  # what training put before the names
_HINT = "It is published with the repository facebookresearch/jepa; JEDi takes it with the probe ssv2-probe.pth.tar."
WEIGHTS = WeightFile("vith16.pth.tar", "https://dl.fbaipublicfiles.com/jepa/vith16/vith16.pth.tar", (), _HINT)
PROBE = WeightFile("ssv2-probe.pth.tar", "https://dl.fbaipublicfiles.com/jepa/vith16/ssv2-probe.pth.tar", (), _HINT)


class SelfAttention(nn.Module):
    """Attention among all tokens of a clip, with a bias for queries, keys and values."""

    def __init__(self, spec: VideoMAESpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.qkv = nn.Linear(spec.width, 3 * spec.width)
        self.proj = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b n h d", three=3, h=self.heads)
        return self.proj(rearrange(attend_sdpa(q, k, v), "b n h d -> b n (h d)"))


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) to normalised tokens (B, n, D)."""

    def __init__(self, spec: VideoMAESpec) -> None:
        super().__init__()
        tokens = spec.frames // 2 * (spec.size // spec.patch) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, spec.width))
        self.patch_embed = PatchEmbedding(spec)
        self.blocks = nn.ModuleList(Block(spec, SelfAttention(spec)) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width, eps=1e-6)

    def forward(self, video: Tensor) -> Tensor:
        x = self.patch_embed(video) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class CrossAttention(nn.Module):
    """One query (B, 1, D) attends to tokens (B, n, D)."""

    def __init__(self, spec: VideoMAESpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.q = nn.Linear(spec.width, spec.width)
        self.kv = nn.Linear(spec.width, 2 * spec.width)
        self.proj = nn.Linear(spec.width, spec.width)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        q = rearrange(self.q(query), "b n (h d) -> b n h d", h=self.heads)
        k, v = rearrange(self.kv(x), "b n (two h d) -> two b n h d", two=2, h=self.heads)
        return self.proj(rearrange(attend_sdpa(q, k, v), "b n h d -> b n (h d)"))


class CrossBlock(nn.Module):
    """What the query learns of normalised tokens is added to it; then an MLP."""

    def __init__(self, spec: VideoMAESpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width)
        self.xattn = CrossAttention(spec)
        self.norm2 = nn.LayerNorm(spec.width)
        self.mlp = Mlp(spec)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        query = query + self.xattn(query, self.norm1(x))
        return query + self.mlp(self.norm2(query))


class Pooler(nn.Module):
    """Tokens (B, n, D) to one vector (B, D)."""

    def __init__(self, spec: VideoMAESpec) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.cross_attention_block = CrossBlock(spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.cross_attention_block(self.query_tokens.expand(len(x), -1, -1), x).squeeze(1)


class VJEPADetector(Detector):
    """The vector of the attentive pooler, 1280 numbers a clip of 16 frames."""

    name = "v-jepa"
    metric = "FD-V-JEPA"
    preprocessing = "divided by 255; stretched to 224x224, bilinear, not antialiased; ImageNet's mean and deviation"
    dim = SPEC.width
    min_frames = SPEC.frames

    def __init__(self, encoder: Encoder, pooler: Pooler, size: int, fingerprint: str) -> None:
        """Wrap a network.

        Args:
            encoder, pooler: with their weights, in float32.
            size: height and width that clips are stretched to, pixels.
            fingerprint: SHA-256 over those of the two weight files.
        """
        super().__init__()
        self.encoder, self.pooler, self.size = encoder.requires_grad_(False), pooler.requires_grad_(False), size
        self.fingerprint = fingerprint
        self.eval()

    @classmethod
    def from_weights(cls, path: Path | None = None, trust: bool = False, **options: Setting) -> "VJEPADetector":
        """Build the detector; see `Detector`. The probe lies beside the encoder's file, under its public name."""
        cls.complete_options(options)
        given = path
        path, encoder_hash = obtain(WEIGHTS, given, trust=trust)
        probe, probe_hash = obtain(PROBE, given and given.with_name(PROBE.file), trust=trust)
        encoder = _entry(path, ENCODERS)
        pooler = {name: value for name, value in _entry(probe, (PROBE_ENTRY,)).items() if name.startswith("pooler.")}
        fingerprint = hashlib.sha256(f"{encoder_hash} {probe_hash}".encode()).hexdigest()
        return cls(*load_networks(encoder, pooler, SPEC), SPEC.size, fingerprint)

    def extract(self, clips: Tensor) -> Tensor:
        """Features (B, 1280) of clips (B, 3, 16, H, W).

        Raises:
            ValueError: another number of frames.
        """
        if clips.shape[2] != self.min_frames:
            raise ValueError(f"detector {self.name!r} takes clips of {self.min_frames} frames, got {clips.shape[2]}")
        video = preprocess(clips, self.size)
        mean, std = (torch.tensor(each, device=video.device).view(3, 1, 1, 1) for each in (MEAN, STD))
        return self.pooler(self.encoder((video - mean) / std))


def load_networks(encoder: Mapping[str, Tensor], pooler: Mapping[str, Tensor], spec: VideoMAESpec) -> tuple[Encoder, Pooler]:
    """Build encoder and pooler around the tensors of state dicts, in float32.

    Args:
        encoder: names with or without what training put before them.
        pooler: likewise, behind `pooler.`.
        spec: the sizes.

    Raises:
        ValueError: other keys or shapes.
    """
    with torch.device("meta"):
        built = Encoder(spec), Pooler(spec)
    for module, prefix, state in ((built[0], "", encoder), (built[1], "pooler.", pooler)):
        state = {_plain(name).removeprefix(prefix): value for name, value in state.items()}
        check_weights(state, {name: tuple(value.shape) for name, value in module.state_dict().items()})
        module.load_state_dict(state, assign=True)
        module.float()
    return built


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.replace(prefix, "")
    return name


def _entry(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The state dict under the first of some names that is there, its own names plain."""
    content = read_pickle(path)
    found = next((content[name] for name in names if isinstance(content, Mapping) and name in content), None)
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds no weights under {' or '.join(names)}: not a checkpoint of V-JEPA")
    return {_plain(name): value for name, value in found.items()}
