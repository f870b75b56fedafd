"""Noise processes, samplers and what wraps a model while sampling. A model is any function `model(x, t, **cond)`.

It imports `sparsity`.
"""
