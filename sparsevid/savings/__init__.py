"""What a call of the model may leave out, and what stands for it: caches, merged tokens, cheaper guidance; one policy a file.

`diffusion` and `models` know no policy: a saving is any object that `models.saving.Saving` describes.

It imports `diffusion`, `models`, `sparsity` and `system`.
"""

from sparsevid.savings.options import parse_saving
from sparsevid.savings.saved import saved

__all__ = ["parse_saving", "saved"]
