"""A run and what it leaves on disk: its config (`config`), what that builds (`build`), its folders (`paths`, `checkpoints`).

A YAML file and overrides come in, a `RunConfig` goes out, which is what training, generation and benchmarks are told.

It imports `savings`, `diffusion`, `models`, `sparsity` and `system`.
"""
