"""Weights of other models as ours: public checkpoints (`public`), and sparse models from dense ones (`dense_to_sparse`).

`checkpoint_file` reads files without running code, `foreign` names those that only look like public ones, `names` and `infer`
know what public checkpoints call layers and show of their model, `text_files` reads PixArt's and Latte-1's, `diffusers_folder`
reads and writes folders of diffusers by what `diffusers_config` and `diffusers_names` know, `conversion` is what comes out.
"""

ENTRIES = ("ema", "model", "module", "state_dict")  # of a training checkpoint, the first that it has
FAMILIES = ("latte", "dit", "sparsedit")  # of public checkpoints
