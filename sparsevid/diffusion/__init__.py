"""Noise processes, samplers and what wraps a model while sampling. A model is any function `model(x, t, **cond)`.

It imports `sparsity`.
"""

# Of `samplers`, which takes seconds to import: what commands offer.
SAMPLER_NAMES = ("ddpm", "ddim", "dpm++", "euler", "heun")
