"""Random generators keyed by what they are for, so that no draw depends on who else drew before."""

import hashlib
from enum import IntEnum

import torch


class Purpose(IntEnum):
    """What a generator is for: the first part of its key, so that no two purposes share a stream."""

    CLIP = 0  # (seed, epoch, video): where a clip starts, and whether it is mirrored
    ORDER = 1  # (seed, epoch): the order of videos
    STAGE = 2  # (seed, block of steps): which stage of the token schedule each slot takes
    TIME = 3  # (seed, step, slot): diffusion times
    NOISE = 4  # (seed, step, slot): noise added to latents
    LABEL_DROPOUT = 5  # (seed, step, slot)
    SAMPLE_START = 6  # (seed, sample): the noise a generated sample starts from
    SAMPLE_STEP = 7  # (seed, sample): the noise of a stochastic sampler's steps
    EVALUATION = 8  # (seed): which videos an evaluation takes; (seed, video): where clips start; -1 at the end: generated ones
    STILL = 9  # (seed, epoch, video): the frames of other videos beside a clip
    POSTERIOR = 10  # (seed, step, slot): latents out of an autoencoder's posterior
    VALIDATION = 11  # (seed, stage, clip): time and noise of a validation clip in a stage of the token schedule
    KID_SUBSETS = 12  # (seed): the clips of KID's subsets
    HALVES = 13  # (seed, repeat): half of the clips, for an interval of a distance
    PARTS = 14  # (seed, turn): disjoint parts of the clips, for a distance against their number
    DISTORTION = 15  # (seed, clip): what a distortion of a clip draws
    IS_ORDER = 16  # (seed): the order of samples in an Inception score
    FIXED_CLIPS = 17  # (seed): which videos a fit or a validation reads
    SAMPLE_CLASSES = 18  # (seed): the order in which samples go through all classes
    MADE_CLIP = 19  # (seed, split, class, clip): what happens in a clip of a made set
    MERGING = 20  # (seed, call): the tokens into which others are merged at a call of the model
    HELD_OUT = 21  # (seed, interval, clip): time and noise of a held-out clip in an interval of times
    CAPTION = 22  # (seed, epoch, video): which of a video's captions a clip is told, and those of its stills


def keyed_generator(purpose: Purpose, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of purpose and key alone.

    Args:
        purpose: what is drawn.
        key: integers, as listed with the purpose. Keys that differ in any part or in length give unrelated streams.
        device: where the generator draws. CPU streams are the same on every machine.

    Returns:
        A freshly seeded `torch.Generator`.
    """
    # A hash rather than numpy's SeedSequence, which gives (1,) and (1, 0) the same stream.
    digest = hashlib.sha256(",".join(str(int(part)) for part in (purpose, *key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
