"""Which clips of which videos a protocol takes: pure functions of lengths, names and generators."""

from collections.abc import Sequence
from itertools import islice

import torch

from sparsevid.data.tree.clip_rule import ClipRule, valid_starts
from sparsevid.data.turns import in_turns
from sparsevid.evaluation.protocols import Protocol, Role, Side
from sparsevid.system.seeding import Purpose, keyed_generator

_FAKE_KEY = -1  # ends the key of a generated video's draws: no video has this number


def draws(role: Role, seed: int, *video: int) -> torch.Generator:
    """The generator of a video's clips, by its number; without a video, of the order of videos. Sides do not share draws."""
    return keyed_generator(Purpose.EVALUATION, seed, *video, *(() if role == "real" else (_FAKE_KEY,)))


def clip_starts(rule: ClipRule, frames: int, start: str, generator: torch.Generator, limit: int | None = None) -> list[int]:
    """First frames of the clips of one video, in the order in which they are taken.

    Args:
        rule: what frames make a clip.
        frames: of the video.
        start: where clips start, see `Protocol`.
        generator: of this video, see `draws`.
        limit: clips at most.

    Returns:
        Different starts; none if the video is too short.
    """
    valid = valid_starts(rule, frames)
    if not valid:
        return []
    if start == "first":
        return [0]
    if start == "random":
        return [valid[i] for i in torch.randperm(len(valid), generator=generator)[:limit].tolist()]
    clips, left_over = divmod(frames, rule.span)
    first = int(torch.randint(left_over + 1, (), generator=generator))
    return [first + i * rule.span for i in torch.randperm(clips, generator=generator)[:limit].tolist()]


def video_order(names: Sequence[str], selection: str, generator: torch.Generator) -> list[int]:
    """The order in which videos give their clips.

    Args:
        names: of the videos, in natural order.
        selection: see `Protocol`.
        generator: of the order, see `draws`.

    Returns:
        Every position in `names`, once.
    """
    if selection in ("random", "balanced"):  # the second where there are no classes
        return torch.randperm(len(names), generator=generator).tolist()
    positions = range(len(names))
    return sorted(positions, key=names.__getitem__) if selection == "sorted" else list(positions)


def take_evenly(classes: Sequence[Sequence[int]], starts: Sequence[Sequence[int]], count: int | None) -> list[tuple[int, int]]:
    """One clip of every class, then a second of every class that has one, … up to a count; inside each so of its videos.

    Args:
        classes: the order of videos in each class.
        starts: for each video the first frames of its clips.
        count: clips at most.

    Returns:
        (video, first frame) of each clip in reading order: by video, then by frame.
    """
    clips = [list(in_turns([[(video, start) for start in starts[video]] for video in order])) for order in classes]
    return sorted(islice(in_turns(clips), count))


def offer(role: Role, side: Side, shortest: int, card: tuple[int, int] | None, job: tuple[int, int | None] | None) -> str:
    """What could be changed so that clips fit, to end a message.

    Args:
        role: of the videos.
        side: what the protocol wants of them.
        shortest: frames of the shortest video.
        card: frames and stride of clips, as the data's card has them.
        job: frames of generated clips, and the stride of real ones that their model was trained on, as a job's record has them.
    """
    least = f" --protocol-option {role}_min_frames=null" if side.least_frames > side.rule.span else ""
    if role == "fake" and job is not None:
        real = "" if job[1] is None else f" --protocol-option real_stride={job[1]}"
        options = f"--protocol-option frames={job[0]} --protocol-option fake_stride=1{least}{real}"
        return f". Clips as the model was trained on, by the job's record and a protocol of another name: {options}"
    length, stride = card or (shortest, shortest)
    if (length - 1) * stride >= shortest:
        length, stride = min(side.rule.frames, shortest), 1
    options = f"--protocol-option frames={length} --protocol-option {role}_stride={stride}{least}"
    run = f"in a run monitor.protocol_options=[frames={length},{role}_stride={stride}]"
    return f". Clips of their own length and stride, by a protocol of another name: {options}, {run}"


def another_stride(protocol: Protocol, job: tuple[int, int | None] | None) -> list[str]:
    """A warning where a protocol takes real clips at another pace than the model of generated ones was trained on.

    Args:
        protocol: the rules.
        job: see `offer`.
    """
    if job is None or job[0] == 1 or job[1] is None or (wanted := job[1] * protocol.fake_stride) == protocol.real_stride:
        return []
    return [
        f"by the job's record the model was trained on clips of stride {job[1]}; protocol {protocol.name} takes generated ones "
        f"at stride {protocol.fake_stride} and real ones at {protocol.real_stride}, which move at another pace. For one pace: "
        f"--protocol-option real_stride={wanted}"
    ]
