"""First stages: pixels ↔ latents. They alone know ranges and scaling; clips outside are uint8, latents have unit scale.

A first stage is an `Autoencoder`: `encode` takes uint8 clips, `decode` gives them back, `save` writes what `decode` needs.
"""

from sparsevid.autoencoder.base import Autoencoder, load_autoencoder

__all__ = ["Autoencoder", "load_autoencoder"]
