"""What the autoencoders of diffusers share: where their weights come from, and what a configuration says without them."""

import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from sparsevid.autoencoder.base import Autoencoder, write_header
from sparsevid.system.home import expand_home

FRAMES_AT_ONCE = 16  # in a forward pass of single frames, which bounds memory
SOURCE_OPTION = "autoencoder.source=FOLDER"  # of a run
SUBFOLDER = "vae"  # where a pipeline of diffusers keeps its autoencoder
HALF = "diffusion_pytorch_model.fp16.safetensors"  # which some have alone
Own = TypeVar("Own", bound="PretrainedAutoencoder")


class LatentsOf(NamedTuple):
    """Of an autoencoder's latents: frames and pixels that one stands for, channels, whether the first frame is apart."""

    time_factor: int
    factor: int
    channels: int
    causal: bool = False


class Vae(Protocol):
    """What is used of a class of diffusers, whose own hints leave it open."""

    config: Any  # a mapping whose keys are attributes, too
    dtype: torch.dtype

    def encode(self, x: Tensor) -> Any: ...
    def decode(self, z: Tensor, **options: Any) -> Any: ...
    def enable_tiling(self) -> None: ...
    def disable_tiling(self) -> None: ...
    def eval(self) -> Any: ...


class PretrainedAutoencoder(Autoencoder):
    """An autoencoder of diffusers, which is saved by where it came from.

    Args:
        vae: of the class `library_class`.
        source: where it came from, a folder or a hub id; saved in place of the weights.
        frames_at_once: frames of a forward pass, for kinds that take single frames.

    Attributes:
        tiling: decode large frames in tiles that overlap, whose seams are blended; `kl` and `wan`.
        slicing: decode one frame (`kl`) or one clip (`wan`) at a time.
    """

    library_class: ClassVar[str]
    example: ClassVar[str]  # a hub id
    usual: ClassVar[LatentsOf]  # what is taken for one whose configuration is not here
    settings: ClassVar[tuple[str, ...]]  # with the weights, these decide what the encoder gives
    can_tile: ClassVar[bool] = True
    vae: Vae

    def __init__(self, vae: Vae, source: str, frames_at_once: int = FRAMES_AT_ONCE) -> None:
        super().__init__()
        self.vae, self.source, self.frames_at_once = vae.eval().requires_grad_(False), source, frames_at_once
        self.tiling = self.slicing = False
        self.time_factor, self.factor, self.channels, self.causal = self.latents_by(vae.config)
        self.moment_channels = 2 * self.channels if self.cacheable else 0

    @staticmethod
    @abstractmethod
    def latents_by(config: Any) -> LatentsOf:
        """What a configuration of diffusers, a mapping, says of the latents."""

    @classmethod
    def from_source(
        cls: type[Own], source: str | None, frames_at_once: int = FRAMES_AT_ONCE, *, option: str = SOURCE_OPTION
    ) -> Own:
        """Load from a local folder, else from the hub by its id; of a whole pipeline its folder `vae` is taken.

        Args:
            source: the folder or the id. A folder is kept by its whole path, which is the same from everywhere.
            frames_at_once: frames of a forward pass, from 1.
            option: how the caller's user says another source, for messages.

        Raises:
            FileNotFoundError: neither; the message says what to get and where to put it.
        """
        import diffusers

        if not source:
            raise FileNotFoundError(
                f"the autoencoder {cls.kind} needs a source, {option}: a local folder or a hub id such as {cls.example}"
            )
        folder = Path(expand_home(source))
        if folder.is_dir():
            source = str(folder.absolute())
        try:
            vae = _load(getattr(diffusers, cls.library_class), source)
        except OSError as error:
            where = "" if folder.is_dir() or folder.is_absolute() else f", which is no folder in {Path.cwd()},"
            raise FileNotFoundError(
                f"cannot load an {cls.library_class} from {source!r}{where} ({str(error).splitlines()[0]}). Get config.json "
                f"and diffusion_pytorch_model.safetensors of, for example, {cls.example}, put them into a folder, "
                f"and pass it: {option}"
            ) from error
        return cls(vae, source, frames_at_once)

    @classmethod
    def latents_of(cls, source: str | None) -> LatentsOf | None:
        """What the configuration of a source says of the latents; None if that is not on this machine."""
        if not source:
            return None
        for part in ("", f"{SUBFOLDER}/"):
            path = Path(expand_home(source)) / f"{part}config.json"
            if not path.is_file():
                try:
                    cached = try_to_load_from_cache(source, f"{part}config.json")
                except HFValidationError:  # no hub id, but a folder
                    continue
                if not isinstance(cached, str):  # not there, or known not to be
                    continue
                path = Path(cached)
            return cls.latents_by(json.loads(path.read_text(encoding="utf-8")))
        return None

    def place(self: Own, device: torch.device, dtype: torch.dtype) -> Own:
        # Convolutions on a GPU run over channels last; elsewhere each would copy its input. Those over time have five axes.
        self.to(device, dtype)
        if device.type == "cuda" and not self.causal:
            self.to(memory_format=torch.channels_last)
        return self

    def configuration(self) -> dict[str, Any]:
        return {name: self.vae.config[name] for name in self.settings}

    def save(self, folder: Path) -> None:
        options = {name: True for name in ("tiling", "slicing") if getattr(self, name)}
        write_header(folder, {"kind": self.kind, "source": self.source, **options})

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Tiles only inside: diffusers' switch is of encoding, too, which would move the latents."""
        if not self.tiling:
            yield
            return
        self.vae.enable_tiling()
        try:
            yield
        finally:
            self.vae.disable_tiling()


def _load(library_class: Any, source: str) -> Vae:
    # Left unsaid where accelerate is not installed, diffusers warns of it, each time.
    load = partial(library_class.from_pretrained, low_cpu_mem_usage=find_spec("accelerate") is not None)
    folder = Path(source)
    if folder.is_dir():
        within = not (folder / "config.json").is_file() and (folder / SUBFOLDER / "config.json").is_file()
        folder = folder / SUBFOLDER if within else folder
        names = {path.name for path in folder.glob("*.safetensors")}
        return load(folder, variant="fp16" if names == {HALF} else None)
    try:
        return load(source)
    except OSError:
        try:
            return load(source, subfolder=SUBFOLDER)
        except OSError:
            pass  # the first error says more
        raise
