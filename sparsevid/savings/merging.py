"""ToMeSD: in spatial attention, tokens of a frame that resemble another one are merged into it (arXiv 2303.17604).

As there, one token of each 2×2 cell, drawn at random, takes others in; those of greatest cosine similarity to one of them are
averaged with it, attention sees the fewer tokens, and its output is copied to all that were merged. A row or column beyond the
last whole cell takes none in. ToMeSD compares a block's normed input, and draws anew at each layer, out of one stream, or not
at all if the batch is odd. Here it is the attention's modulated input, and one draw a call, by (seed, call).

Dimensions: F frames of all clips, N tokens a frame, K of them after merging, D channels.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from sparsevid.models.saving import Part, Place
from sparsevid.savings.base import Call, Policy, SavingError, at_least
from sparsevid.sparsity.cost import attention_macs
from sparsevid.sparsity.grid import Grid

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CELL = 2  # rows and columns of a cell, of whose tokens one takes others in
MOST = 1 - 1 / CELL**2  # of the tokens: all but one of each cell


@dataclass
class Merging(Policy):
    """Merges the share `ratio` of each frame's tokens into others, in the spatial attention of layers D and S.

    Frames of one row or column are left as they are.
    """

    name: ClassVar[str] = "merging"
    points: ClassVar = ("attention",)
    family: ClassVar[str] = "merging"

    ratio: float = 0.5
    _call: Call = field(init=False, repr=False, compare=False)
    _drawn: dict = field(init=False, default_factory=dict, repr=False, compare=False)  # what `split_tokens` drew, by grid

    def __post_init__(self) -> None:
        at_least(self.ratio, 0, "ratio", self)
        if self.ratio >= MOST:
            raise SavingError(
                f"saving merging: ratio = {self.ratio}; it is below {MOST}: one token of each {CELL}×{CELL} stays"
            )

    @property
    def changes_nothing(self) -> bool:
        return self.ratio == 0

    def begin(self, call: Call) -> None:
        self._call, self._drawn = call, {}

    def changed(self, place: Place, part: Part) -> Part:
        grid = _grid(place, self._call)
        if grid is None or not (merged := self._merged(grid)):
            return part

        def compute(tokens: "Tensor") -> "Tensor":  # (B, T, N, D)
            frames = tokens.flatten(0, 1)
            match = match_tokens(frames, *self._split(grid, tokens.device), merged)
            attended = part.compute(match.merge(frames).unflatten(0, tokens.shape[:2]))
            return match.unmerge(attended.flatten(0, 1)).view_as(tokens)

        return Part(compute, part.inputs)

    def macs(self, place: Place, call: Call, usual: int) -> int:
        grid = _grid(place, call)
        if grid is None or not (merged := self._merged(grid)):
            return usual
        tokens, into = grid.h * grid.w, _cells(grid)
        fewer = Grid(grid.t, 1, tokens - merged)
        matching = grid.t * (tokens - into) * into * call.spec.hidden_size
        return attention_macs(call.spec, place.index, fewer, fewer) + matching

    def _merged(self, grid: Grid) -> int:
        """Tokens of a frame that are merged into others."""
        if not _cells(grid):
            return 0
        tokens = grid.h * grid.w
        return min(int(tokens * self.ratio), tokens - _cells(grid))

    def _split(self, grid: Grid, device: "torch.device") -> "tuple[Tensor, Tensor]":
        from sparsevid.system.seeding import Purpose, keyed_generator

        if grid not in self._drawn:
            generator = keyed_generator(Purpose.MERGING, self._call.seed, self._call.number)
            self._drawn[grid] = [each.to(device, non_blocking=True) for each in split_tokens(grid, generator)]
        return self._drawn[grid]


class Match(NamedTuple):
    """Which tokens of each frame become one.

    Attributes:
        order: (F, N), the tokens: first those that stay, in the order that merging gives them, then those that are merged.
        into: (F, N − K), the place in that order of what each is merged into.
        place: (F, N), where each token is after merging.
    """

    order: "Tensor"
    into: "Tensor"
    place: "Tensor"

    def merge(self, tokens: "Tensor") -> "Tensor":
        """(F, N, D) → (F, K, D): each is the mean of those that it stands for."""
        stay, merged = _taken(tokens, self.order).tensor_split([tokens.shape[1] - self.into.shape[1]], 1)
        return stay.scatter_reduce(1, self.into[..., None].expand_as(merged), merged, "mean")

    def unmerge(self, tokens: "Tensor") -> "Tensor":
        """(F, K, D) → (F, N, D): a copy for each."""
        return _taken(tokens, self.place)


def split_tokens(grid: Grid, generator: "torch.Generator") -> "tuple[Tensor, Tensor]":
    """Indices of a frame's tokens: those that may be merged, and one of each cell, by chance, that takes others in."""
    import torch

    rows, columns = grid.h // CELL, grid.w // CELL
    drawn = torch.randint(CELL**2, (rows, columns), generator=generator)
    row = CELL * torch.arange(rows)[:, None] + drawn // CELL
    column = CELL * torch.arange(columns) + drawn % CELL
    takes = torch.zeros(grid.h, grid.w, dtype=torch.bool)
    takes[row, column] = True
    return (~takes).flatten().nonzero()[:, 0], takes.flatten().nonzero()[:, 0]


def match_tokens(tokens: "Tensor", source: "Tensor", target: "Tensor", merged: int) -> Match:
    """Match in each frame so many tokens with the most similar that takes them in, those of greatest cosine similarity.

    Args:
        tokens: (F, N, D).
        source, target: indices as of `split_tokens`.
        merged: how many.
    """
    import torch

    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    similarity = unit[:, source] @ unit[:, target].transpose(1, 2)
    best, nearest = similarity.max(dim=-1)
    ranked = best.argsort(dim=-1, descending=True, stable=True)
    joins, stays = ranked[:, :merged], ranked[:, merged:]
    into = stays.shape[1] + nearest.gather(1, joins)
    order = torch.cat([source[stays], target.expand(len(tokens), -1), source[joins]], 1)
    kept = torch.arange(tokens.shape[1] - merged, device=tokens.device).expand(len(tokens), -1)
    return Match(order, into, torch.empty_like(order).scatter_(1, order, torch.cat([kept, into], 1)))


def _taken(tokens: "Tensor", indices: "Tensor") -> "Tensor":
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def _cells(grid: Grid) -> int:
    """Whole cells of a frame."""
    return (grid.h // CELL) * (grid.w // CELL)


def _grid(place: Place, call: Call) -> Grid | None:
    """The tokens' grid, if the attention is one among the tokens of a frame."""
    if place.kind not in "DS" or place.axis != "space":
        return None
    return call.sparse if place.kind == "S" else call.dense
