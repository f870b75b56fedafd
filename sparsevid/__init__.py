"""sparsevid: sparse-dense diffusion transformers for video (SparseDiT, arXiv 2412.06028, on Latte, arXiv 2401.03048)."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsevid.generation.pipeline import VideoPipeline
    from sparsevid.models.presets import build_spec
    from sparsevid.models.transformer import DiffusionTransformer
    from sparsevid.sparsity.spec import ModelSpec

try:
    __version__ = version("sparsevid")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

__all__ = ["DiffusionTransformer", "ModelSpec", "VideoPipeline", "__version__", "build_spec"]

_LAZY = {
    "DiffusionTransformer": "sparsevid.models.transformer",
    "ModelSpec": "sparsevid.sparsity.spec",
    "VideoPipeline": "sparsevid.generation.pipeline",
    "build_spec": "sparsevid.models.presets",
}


if not TYPE_CHECKING:  # to which every name would be one of the package

    def __getattr__(name: str) -> object:
        """Import public names on first use, so that `sparsevid --help` does not wait for torch."""
        if name not in _LAZY:
            raise AttributeError(f"module 'sparsevid' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
