"""What goes from the host to a device without either waiting for the other."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Values on a device. To a GPU they go through pinned memory, and the host does not wait for them.

    Args:
        values: anywhere; in pinned memory already, they are not copied once more.
        device: where to.
    """
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
