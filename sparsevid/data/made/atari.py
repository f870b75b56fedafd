"""Clips of twelve games of the Atari 2600, played at random in the emulator of `ale-py`, which brings the games.

Dimensions: C = 3 channels (RGB), T frames, H height, W width.

A clip is a function of seed, split, game and number: a game begins, is played for a drawn while, and the first stretch is
taken in which it goes on: no life is lost, nothing flashes, and in most frames something moves. Actions are drawn, and mostly
kept: a joystick that changes at random sixty times a second goes nowhere.
"""

from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from sparsevid.data.made.atari_captions import captions_of
from sparsevid.data.made.base import MadeSet, MadeSettings
from sparsevid.data.transforms import area_average
from sparsevid.system.seeding import Purpose, keyed_generator

RATE = 60  # frames a second of the console
HELD = 4  # frames of the console that an action lasts at least
KEPT = 60  # of a hundred actions, those that are the one before again
SPREAD = 360  # frames of the console over which clips begin
WAIT = 90  # at most so many from a stretch that is not taken to the next
STRETCHES = 60  # tried for a clip; if the game goes on in none of them, what comes next is taken
MOST_STILL = 0.25  # share of frames in which too little changes
FLASH = 0.25  # share of pixels that no game changes from a frame to the next but when something explodes


class Game(NamedTuple):
    """How a game is played.

    Attributes:
        begin: frames of the console from its start on in which nothing happens yet.
        often: actions that are drawn as often as all of its actions together, without which little moves.
        moving: pixels of the console's picture that change from a frame to the next while the game goes on, at least.
    """

    begin: int = 60
    often: tuple[str, ...] = ()
    moving: int = 1


# A game's place is part of the key of its clips: new ones go to the end.
GAMES = {
    "breakout": Game(),
    "freeway": Game(often=("UP",)),
    "enduro": Game(begin=120, often=("FIRE", "RIGHTFIRE", "LEFTFIRE")),
    "seaquest": Game(begin=120, moving=20),
    "space_invaders": Game(begin=120, moving=27),
    "ms_pacman": Game(begin=270, moving=100),
    "boxing": Game(),
    "pong": Game(begin=120),
    "riverraid": Game(begin=120, often=("FIRE", "UPFIRE")),
    "beam_rider": Game(begin=240),
    "qbert": Game(begin=150, moving=40),  # its discs turn while nobody is there
    "road_runner": Game(begin=120, often=("LEFT", "UPLEFT", "DOWNLEFT")),
}


class AtariSet(MadeSet):
    """The set of the card `atari`; see `MadeSet`. Not for several threads at once: they would play one console."""

    name = "atari"
    distribution = "ale-py"
    all_classes = tuple(sorted(GAMES))
    defaults = MadeSettings(size=(64, 64), frames=16, skip=4, classes=all_classes, seed=0)
    default_counts = MappingProxyType({"train": 100, "test": 20})
    rate = RATE

    def check(self) -> None:
        """Raise ImportError if the emulator is not installed."""
        _emulator()

    def clip(self, split: int, name: str, index: int) -> Tensor:
        """See `MadeSet.clip`."""
        settings = self.settings
        draws = keyed_generator(Purpose.MADE_CLIP, settings.seed, split, list(GAMES).index(name), index)
        play = Play(name, draws)
        play.advance(int(torch.randint(SPREAD, (), generator=draws)))
        for _ in range(STRETCHES):
            if frames := play.stretch(settings.frames, settings.skip):
                break
            # What ended it, as a new life does, is the same in many clips, and they would all begin there.
            play.advance(int(torch.randint(WAIT, (), generator=draws)))
        else:
            frames = [play.frame(settings.skip) for _ in range(settings.frames)]
        clip = rearrange(torch.from_numpy(np.stack(frames)), "t h w c -> c t h w")
        return area_average(clip, settings.size)

    def captions(self, name: str, frames: Tensor) -> tuple[str, ...]:
        """See `MadeSet.captions`."""
        return captions_of(name, frames)


class Play:
    """One game after the other, by drawn actions.

    Args:
        game: a key of `GAMES`; it is begun, and played to where something happens.
        draws: what actions are drawn from.
    """

    def __init__(self, game: str, draws: torch.Generator) -> None:
        self.console, self.begin, self.actions = _console(game)
        self.draws, self.rules = draws, GAMES[game]
        self.played = self.games = 0
        self._begin()
        self.advance(self.rules.begin)

    def advance(self, frames: int) -> None:
        """Play on for so many frames of the console. A game that is over begins anew."""
        for _ in range(frames):
            if self.played % HELD == 0:
                kept, choice = torch.randint(1 << 16, (2,), generator=self.draws).tolist()
                if self.played == 0 or kept % 100 >= KEPT:
                    self.action = self.actions[choice % len(self.actions)]
            self.played += 1
            self.console.act(self.action)
            if self.console.game_over():
                self._begin()

    def _begin(self) -> None:
        """Begin a game, as on a console that was just loaded: either call alone leaves something of the game before."""
        self.games += 1
        self.console.reset_game()
        self.console.restoreState(self.begin)

    def frame(self, skip: int) -> np.ndarray:
        """Play on for `skip` frames, and show the brighter of the last two, uint8 (H,W,C): games that have more to draw than
        the console can show do so in turns.
        """
        self.advance(skip - 1)
        before = self.console.getScreenRGB()
        self.advance(1)
        return np.maximum(before, self.console.getScreenRGB())

    def stretch(self, frames: int, skip: int) -> list[np.ndarray] | None:
        """So many frames in which the game goes on, each as `frame` gives it; None as soon as it does not."""
        taken, still = [self.frame(skip)], 0
        before = self.games, self.console.lives()
        while len(taken) < frames:
            taken.append(self.frame(skip))
            changed = int((taken[-1] != taken[-2]).any(axis=2).sum())
            still += changed < self.rules.moving
            flash = changed > FLASH * taken[-1][..., 0].size
            if flash or still > MOST_STILL * (frames - 1) or (self.games, self.console.lives()) != before:
                return None
        return taken


@cache
def _console(game: str) -> tuple:
    """A console with a game, its state at the game's start, and actions as often as they are to be drawn.

    Loading takes as long as a thousand frames, so it is done once.
    """
    emulator = _emulator()
    console = emulator.ALEInterface()
    console.setInt("random_seed", 0)  # else it is the clock's
    console.setFloat("repeat_action_probability", 0.0)  # actions that are kept are ours
    console.loadROM(Path(emulator.__file__).parent / "roms" / f"{game}.bin")
    actions = console.getMinimalActionSet()
    often = [action for action in actions if action.name in GAMES[game].often]
    more = len(actions) // max(1, len(often))
    return console, console.cloneState(include_rng=True), [*actions, *often * more]


@cache
def _emulator() -> Any:
    try:
        import ale_py
    except ModuleNotFoundError as error:
        text = f'make_data atari needs the package ale-py ({error}): pip install "sparsevid[atari]"'
        raise ImportError(text) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py


SET = AtariSet
