"""Noise processes, samplers and what wraps a model while sampling. A model is any function `model(x, t, **cond)`.

It imports `sparsity`.
"""

# Of `samplers`, which takes seconds to import: what commands offer, and what savings, whose options commands list, go by.
SAMPLER_NAMES = ("ddpm", "ddim", "dpm++", "euler", "heun")
CONDITIONAL, NULL = "conditional", "null"  # the halves of guidance: with a class, and without
BOTH_HALVES = (CONDITIONAL, NULL)
