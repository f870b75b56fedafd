"""Noise processes, samplers and what wraps a model while sampling. A model is any function `model(x, t, **cond)`.

It imports `sparsity`.
"""

# Of `samplers` and `null_text`, which take seconds to import: what commands offer, and what savings go by, which commands list.
SAMPLER_NAMES = ("ddpm", "ddim", "dpm++", "euler", "heun")
CONDITIONAL, NULL = "conditional", "null"  # the halves of guidance: with a class, and without
BOTH_HALVES = (CONDITIONAL, NULL)
MASKS = ("own", "prompt")  # whose tokens of "no prompt" are heard: its own, or as many as of the prompt beside it
