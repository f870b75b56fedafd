"""Random generators keyed by what they are for, so that no draw depends on who else drew before."""

import hashlib

import torch


def keyed_generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of `key` alone.

    Args:
        key: integers, such as (seed, epoch, sample) for clips or (seed, step, slot) for noise. Keys that differ in any part or
            in length give unrelated streams.
        device: where the generator draws. CPU streams are the same on every machine.

    Returns:
        A freshly seeded `torch.Generator`.
    """
    # A hash rather than numpy's SeedSequence, which gives (1,) and (1, 0) the same stream.
    digest = hashlib.sha256(",".join(str(int(part)) for part in key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
