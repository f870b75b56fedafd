"""What is seen in clips of the games: phrases by game, and what moves, measured on the frames.

Dimensions: T frames, H height, W width, C = 3 channels.
"""

import torch
from torch import Tensor

PHRASES = {
    "beam_rider": (
        "a yellow ship flies over a grid of blue beams",
        "a spaceship shoots at white saucers in a black sky crossed by blue lines",
        "saucers come down blue beams of light towards a small ship",
    ),
    "boxing": (
        "two boxers fight in a ring on a green floor",
        "a white and a black boxer seen from above",
        "a boxing match, one fighter white, one black, in an orange ring",
    ),
    "breakout": (
        "a ball flies under a wall of coloured bricks",
        "a red paddle plays a ball against bricks in rainbow colours",
        "bricks in red, orange, yellow, green and blue above a black court",
    ),
    "enduro": (
        "a white racing car drives along a road over green fields",
        "cars race on a road that leads to the horizon",
        "a race seen from behind a car, under a blue sky",
    ),
    "freeway": (
        "a yellow chicken crosses a wide grey road",
        "cars in many colours drive along ten lanes",
        "a grey motorway full of cars, seen from above",
    ),
    "ms_pacman": (
        "a yellow mouth eats dots in a pink maze",
        "ghosts chase somebody through a maze on a blue ground",
        "a maze of pink walls with coloured ghosts in it",
    ),
    "pong": (
        "a white ball flies between two paddles on a brown court",
        "a game of table tennis, an orange and a green paddle",
        "a brown court with a paddle at either side",
    ),
    "qbert": (
        "an orange creature hops on a pyramid of cubes",
        "a pyramid of turquoise cubes in the dark",
        "somebody jumps from cube to cube and changes their colour",
    ),
    "riverraid": (
        "a yellow plane flies up a blue river",
        "a river between green banks with ships on it",
        "a plane over a river, seen from above",
    ),
    "road_runner": (
        "a blue bird runs along a road through the desert",
        "a coyote chases a bird on a black road",
        "an orange desert under a blue sky, and a road in front",
    ),
    "seaquest": (
        "a yellow submarine dives in the blue sea",
        "a submarine among fish under a red and yellow evening sky",
        "fish and divers swim in dark blue water",
    ),
    "space_invaders": (
        "rows of yellow invaders march over a green cannon",
        "invaders from space above three orange shields",
        "a cannon shoots at rows of creatures in the dark",
    ),
}
LITTLE, MUCH = 10, 60  # thousandths of the pixels that change from a frame to the next: below, and from
DRIFT = 20  # hundredths of a pixel a frame to one side, from which on things move there


def captions_of(name: str, frames: Tensor) -> tuple[str, ...]:
    """Captions of a clip, one for each phrase of its game; all but the first say what moves, if that can be told.

    Args:
        name: a key of `PHRASES`.
        frames: uint8 (T,H,W,C).
    """
    first, *others = PHRASES[name]
    moves = motion(frames)
    return (first, *(f"{phrase}, {moves}" if moves else phrase for phrase in others))


def motion(frames: Tensor) -> str:
    """How much moves in a clip, and to which side; empty where neither can be told. Whole numbers alone, so that it is the same
    on every processor.

    Args:
        frames: uint8 (T,H,W,C).
    """
    changed = (frames[1:] != frames[:-1]).any(dim=-1)  # (T-1,H,W)
    pixels = changed.numel()
    if not pixels:
        return ""
    count = 1000 * int(changed.sum())
    amount = "little moves" if count < LITTLE * pixels else "much moves" if count >= MUCH * pixels else ""
    side = _side(frames.to(torch.int64).sum(dim=-1), changed)
    if not amount and side:
        amount = "things move"
    return f"{amount} {side}".strip()


def _side(grey: Tensor, changed: Tensor) -> str:
    """To which side things move: the least squares solution v of dI/dt + v·dI/dx = 0 over the pixels that change.

    Args:
        grey: I, whole numbers (T,H,W).
        changed: bool (T-1,H,W).
    """
    where = changed[:, :, 1:-1]
    in_time = (grey[1:] - grey[:-1])[:, :, 1:-1] * where
    across = (grey[:-1, :, 2:] - grey[:-1, :, :-2]) * where  # twice dI/dx
    product, square = -200 * int((in_time * across).sum()), int((across * across).sum())  # v = product / square / 100
    if not square or abs(product) < DRIFT * square:
        return ""
    return "to the right" if product > 0 else "to the left"
