"""A page in the browser that samples models and sets two ways to do so side by side.

`models` opens what is on offer, `comparison` makes the clips of a click and counts what they cost, `markup` shows them, and
`page` is the only module that imports Gradio.

It imports `benchmark`, `evaluation`, `generation`, `savings`, `diffusion`, `videos`, `sparsity` and `system`.
"""
