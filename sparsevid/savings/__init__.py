"""What a call of the model may leave out, and what stands for it: caches, merged tokens, cheaper guidance; one policy a file.

Options come in and a model goes out that leaves parts of its calls out, for one sampling of one batch. The protocol by which
the model asks stands in `sparsevid.models.saving`; neither model nor samplers know a policy.

It imports `diffusion`, `models`, `sparsity` and `system`.
"""

from sparsevid.savings.options import parse_saving
from sparsevid.savings.saved import saved

__all__ = ["parse_saving", "saved"]
