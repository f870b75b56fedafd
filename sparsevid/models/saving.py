"""What a call of the model may leave out: the whole stack of layers, a layer, an attention, an MLP.

The model offers each of these to the saving that it is called with, at its place, as a part that can be computed or not; what
the saving returns stands for the part's output. The model knows no policy; those are in `sparsevid.savings`.

Dimensions: B clips, T frames, N tokens a frame, D channels.
"""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Place(NamedTuple):
    """Where a part stands.

    Attributes:
        point: `stack` (all layers, from the embedded tokens to what the head takes), `layer`, or, inside of a layer and before
            their gates, `attention` (with the norm and the modulation before it) and `mlp` (the same).
        index: of the layer; 0 for the stack.
        kind: of the layer, one of P, M, S, R, D; empty for the stack.
        axis: what the layer's attention goes over: `space`, `time`, or `window` (of M and R); empty for the stack.
    """

    point: str
    index: int  # type: ignore[assignment]  # hides `tuple.index`, which nobody asks of a place
    kind: str
    axis: str


STACK = Place("stack", 0, "", "")


class Part:
    """Something that a call computes: `part()` does.

    Args:
        compute: of the inputs.
        inputs: makes the tensors that it is computed from, B first, once they are needed: of the stack the tokens, then what
            each layer is modulated by; of a layer its tokens, first those that it changes, and what it is modulated by; of an
            attention or an MLP the modulated tokens.
    """

    def __init__(self, compute: "Callable[..., Tensor]", inputs: "Callable[[], tuple[Tensor | None, ...]]") -> None:
        self.compute, self._make = compute, inputs
        self._inputs: tuple[Tensor | None, ...] | None = None

    def inputs(self) -> "tuple[Tensor | None, ...]":
        """What the part is computed from."""
        if self._inputs is None:
            self._inputs = self._make()
        return self._inputs

    def tokens(self) -> "Tensor":
        """The first of what the part is computed from."""
        tokens = self.inputs()[0]
        assert tokens is not None  # sparse tokens are there by the layer that takes them
        return tokens

    def __call__(self) -> "Tensor":
        """The part's output, B first."""
        return self.compute(*self.inputs())

    def of(self, rows: slice) -> "Part":
        """The same part for some of the clips."""
        return Part(self.compute, lambda: _rows(self.inputs(), rows))


class Tokens(NamedTuple):
    """Tokens between two layers: dense x (B, T, N, D), and inside a module sparse s (B, t, n, D) and what s began as."""

    x: "Tensor"
    s: "Tensor | None" = None
    pooled: "Tensor | None" = None


class Stack(Part):
    """All layers, of which the first may be computed before it is decided about the others.

    Args:
        begin: the first layer, of the inputs.
        finish: the others, of the tokens after the first layer and what each layer is modulated by.
        modulated: the normed and modulated input of the first layer, of the inputs.
        inputs: see `Part`.
    """

    def __init__(
        self,
        begin: Callable[..., Tokens],
        finish: "Callable[..., Tensor]",
        modulated: "Callable[..., Tensor]",
        inputs: "Callable[[], tuple[Tensor | None, ...]]",
    ) -> None:
        super().__init__(lambda *inputs: finish(begin(*inputs), *inputs[1:]), inputs)
        self._begin, self._finish, self._modulated = begin, finish, modulated
        self._begun: Tokens | None = None
        self._first_input: Tensor | None = None
        self._whole: tuple[Stack, slice] | None = None  # of which this is for some of the clips

    def first(self) -> Tokens:
        """What the first layer gives; it is computed once, for all clips, also if all layers are computed later."""
        if self._begun is None and self._whole is not None:
            self._whole[0].first()
        return self._first_tokens()

    @property
    def is_begun(self) -> bool:
        """Whether the first layer is computed."""
        return self._begun is not None

    def modulated(self) -> "Tensor":
        """The first layer's input, normed and modulated: (B, T, N, D)."""
        if self._first_input is None:
            self._first_input = self._modulated(*self.inputs())
        return self._first_input

    def __call__(self) -> "Tensor":
        """The tokens that the head takes, (B, T, N, D)."""
        return self._finish(self._first_tokens(), *self.inputs()[1:])

    def of(self, rows: slice) -> "Stack":
        """The same for some of the clips; what is asked for before it is decided, is computed for all."""
        part = Stack(self._begin, self._finish, lambda *_: self.modulated()[rows], lambda: _rows(self.inputs(), rows))
        part._whole = self, rows
        return part

    def _first_tokens(self) -> Tokens:
        if self._begun is None:
            whole, rows = self._whole or (self, slice(None))
            if whole._begun is None:
                self._begun = self._begin(*self.inputs())
            else:
                x, *sparse = whole._begun
                self._begun = Tokens(x[rows], *_rows(tuple(sparse), rows))
        return self._begun


class Saving(Protocol):
    """Decides what is left out: called with a part at its place, it gives the part's output, or what stands for it.

    Attributes:
        points: where it is asked; everywhere else the model computes as without it.
        differences: whether it takes differences of sparse tokens, which are small beside them: they are in float32 then.
    """

    points: Collection[str]
    differences: bool

    def __call__(self, place: Place, part: Part) -> "Tensor":
        """The output of the part, (B, ...), computed or not."""
        ...


def _rows(tensors: "tuple[Tensor | None, ...]", rows: slice) -> "tuple[Tensor | None, ...]":
    return tuple(each if each is None else each[rows] for each in tensors)


def asked(saving: Saving | None, *points: str) -> Saving | None:
    """The saving, if it is to be asked at any of these points."""
    return saving if saving is not None and any(point in saving.points for point in points) else None
