"""The variational autoencoder of latent diffusion: diffusers' `AutoencoderKL`, frame by frame."""

import json
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder, to_uint8, to_unit_range, write_header
from sparsevid.system.home import expand_home
from sparsevid.system.transfer import to_device

FRAMES_AT_ONCE = 16  # in a forward pass, which bounds memory
SOURCE_OPTION = "autoencoder.source=FOLDER"  # of a run
# With the weights, these settings of `AutoencoderKL` decide what its encoder gives.
ENCODER_SETTINGS = ("act_fn", "block_out_channels", "down_block_types", "latent_channels", "layers_per_block",
                    "mid_block_add_attention", "norm_num_groups", "scaling_factor", "use_quant_conv")  # fmt: skip


class KLAutoencoder(Autoencoder):
    """`AutoencoderKL` with its own scaling factor; `encode` gives the mean of the posterior.

    Its moments are the posterior's mean and log-variance, M = 2C channels, before scaling.

    Args:
        vae: a diffusers `AutoencoderKL`.
        source: where it came from, a folder or a hub id; saved in place of the weights.
        frames_at_once: frames of a forward pass.
    """

    kind = "kl"
    cache_dtypes = (torch.float16, torch.float32)

    def __init__(self, vae: torch.nn.Module, source: str, frames_at_once: int = FRAMES_AT_ONCE) -> None:
        super().__init__()
        self.vae, self.source, self.frames_at_once = vae.eval().requires_grad_(False), source, frames_at_once
        self.channels = vae.config.latent_channels
        self.moment_channels = 2 * self.channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @classmethod
    def from_source(
        cls, source: str | None, frames_at_once: int = FRAMES_AT_ONCE, *, option: str = SOURCE_OPTION
    ) -> "KLAutoencoder":
        """Load from a local folder, else from the hub by its id.

        Args:
            source: the folder or the id. A folder is kept by its whole path, which is the same from everywhere.
            frames_at_once: frames of a forward pass, from 1.
            option: how the caller's user says another source, for messages.

        Raises:
            FileNotFoundError: neither; the message says what to get and where to put it.
        """
        from diffusers import AutoencoderKL

        if not source:
            raise FileNotFoundError(
                f"the autoencoder kl needs a source, {option}: a local folder or a hub id such as stabilityai/sd-vae-ft-ema"
            )
        folder = Path(expand_home(source))
        if folder.is_dir():
            source = str(folder.absolute())
        try:
            vae = AutoencoderKL.from_pretrained(source)
        except OSError as error:
            where = "" if folder.is_dir() or folder.is_absolute() else f", which is no folder in {Path.cwd()},"
            raise FileNotFoundError(
                f"cannot load an AutoencoderKL from {source!r}{where} ({str(error).splitlines()[0]}). Get config.json and "
                "diffusion_pytorch_model.safetensors of, for example, stabilityai/sd-vae-ft-ema, put them into a folder, "
                f"and pass it: {option}"
            ) from error
        return cls(vae, source, frames_at_once)

    @staticmethod
    def latents_of(source: str | None) -> tuple[int, int] | None:
        """Pixels of a latent's side, and channels, by the configuration of a source; None if that is not on this machine."""
        if not source:
            return None
        path: object = Path(expand_home(source)) / "config.json"
        if not path.is_file():
            try:
                path = try_to_load_from_cache(source, "config.json")
            except HFValidationError:  # no hub id, but a folder that is not there
                return None
        if not isinstance(path, str | Path):
            return None
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        return 2 ** (len(config["block_out_channels"]) - 1), config["latent_channels"]

    def place(self, device: torch.device, dtype: torch.dtype) -> "KLAutoencoder":
        # Convolutions on a GPU run over channels last; elsewhere each would copy its input.
        order = torch.channels_last if device.type == "cuda" else torch.preserve_format
        return self.to(device, dtype, memory_format=order)

    def encode(self, clips: Tensor) -> Tensor:
        return self.latents(self.moments(clips))

    @torch.no_grad()
    def moments(self, clips: Tensor) -> Tensor:
        """Posterior mean and log-variance, float32 (B, 2C, T, H/f, W/f); the log-variance is clamped as in diffusers."""
        self.check_clips(clips)
        frames = rearrange(to_unit_range(clips), "b c t h w -> (b t) c h w").to(self.vae.dtype)
        posteriors = [self.vae.encode(part).latent_dist for part in frames.split(self.frames_at_once)]
        moments = torch.cat([torch.cat([posterior.mean, posterior.logvar], dim=1) for posterior in posteriors])
        return rearrange(moments.float(), "(b t) m h w -> b m t h w", b=len(clips))

    def latents(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, logvar = moments.float().chunk(2, dim=1)
        if generator is not None:
            # Drawn on the CPU: one generator gives the same noise on every device.
            noise = to_device(torch.randn(mean.shape, generator=generator), mean.device)
            mean = mean + torch.exp(0.5 * logvar) * noise
        return mean * self.vae.config.scaling_factor

    def configuration(self) -> dict[str, Any]:
        return {name: self.vae.config[name] for name in ENCODER_SETTINGS}

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        frames = rearrange(latents / self.vae.config.scaling_factor, "b c t h w -> (b t) c h w").to(self.vae.dtype)
        pixels = torch.cat([to_uint8(self.vae.decode(part).sample) for part in frames.split(self.frames_at_once)])
        return rearrange(pixels, "(b t) c h w -> b c t h w", b=len(latents))

    def save(self, folder: Path) -> None:
        write_header(folder, {"kind": self.kind, "source": self.source})
