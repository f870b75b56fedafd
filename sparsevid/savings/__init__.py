"""What a call of the model may leave out, and what stands for it: caches, merged tokens, cheaper guidance; one policy a file.

Imports models and diffusion, which know no policy, sparsity and system.
"""

from sparsevid.savings.options import parse_saving
from sparsevid.savings.saved import saved

__all__ = ["parse_saving", "saved"]
