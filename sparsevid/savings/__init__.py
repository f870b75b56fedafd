"""What a call of the model may leave out, and what stands for it: caches, merged tokens, cheaper guidance; one policy a file.

Options come in and a model goes out that leaves parts of its calls out, for one sampling of one batch. The protocol by which
the model asks stands in `sparsevid.models.saving`; neither model nor samplers know a policy.

It imports `diffusion`, `models`, `sparsity` and `system`.
"""

from typing import TYPE_CHECKING, Any

from sparsevid.savings.options import parse_saving

if TYPE_CHECKING:
    from sparsevid.savings.wrapper import saved

__all__ = ["parse_saving", "saved"]


def __getattr__(name: str) -> Any:
    """`saved` on first use: commands list savings in their help without waiting for torch."""
    if name != "saved":
        raise AttributeError(f"module 'sparsevid.savings' has no attribute {name!r}")
    from sparsevid.savings.wrapper import saved

    return saved
