"""First stages: pixels ↔ latents. They alone know ranges and scaling: clips outside are uint8, latents have unit scale.

Each kind is a module (`linear`, `pixels`; `kl`, `temporal` and `wan` of diffusers, which share `pretrained`) with a class that
has what `base` says: `encode` takes uint8 clips, `decode`
gives them back, `save` writes what `decode` needs, and `load` builds whatever was saved.

It imports `system`.
"""
