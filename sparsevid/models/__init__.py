"""The one transformer: embeddings, attention, five kinds of layers in any layout, named as in the public checkpoints; presets.

A `ModelSpec` comes in and a module goes out; `convert` brings weights of other models, and `compiled` and `graphs` give the
module in forms that take less time. Nothing here knows of noise, guidance,
DeepSpeed or runs.

It imports `sparsity` and `system`.
"""
