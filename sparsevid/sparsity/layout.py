"""Layer layouts: `2P 4(1M3S1R1D) 2D` ↔ layers in depth order.

Kinds of layer, bottom to top (SparseDiT, section 3):
    P  Poolingformer layer on dense tokens: mean pooling in place of attention
    M  merge: sparse tokens attend to dense ones; opens a Sparse-Dense Token Module (SDTM)
    S  ordinary layer on the sparse tokens
    R  recover: dense tokens, merged with the upsampled sparse ones, attend to the sparse ones; closes the sparse part
    D  ordinary layer on dense tokens
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

KINDS = "PMSRD"
MOST_LAYERS = 10_000  # far beyond any model; a slip of the hand, such as 28000000D, is named before it fills the memory
_TOKEN = re.compile(r"\s*(?:(\d+)\s*\(([^()]*)\)|(\d+)\s*([A-Za-z]))")
_RUN = re.compile(r"\s*(\d+)\s*([A-Za-z])\s*")


class Run(NamedTuple):
    """`count` layers of one kind in a row."""

    count: int  # type: ignore[assignment]  # hides `tuple.count`, which nobody asks of a run
    kind: str


class Group(NamedTuple):
    """Runs that are repeated `repeat` times; a group that is not repeated is written without parentheses."""

    repeat: int
    runs: tuple[Run, ...]


class Segment(NamedTuple):
    """Layers `start` to `stop` (exclusive) that work on the same tokens: `sparse` from an M to its R, dense elsewhere."""

    sparse: bool
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """A parsed layout. Compare, print (`str`) and count (`len`) it; `kinds` has one letter per layer."""

    groups: tuple[Group, ...]

    @property
    def kinds(self) -> str:
        """One letter per layer in depth order, such as `PPMSSSRD`."""
        return "".join("".join(run.kind * run.count for run in group.runs) * group.repeat for group in self.groups)

    @property
    def is_sparse(self) -> bool:
        """Whether any layer works on sparse tokens."""
        return "M" in self.kinds

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The dense and sparse stretches of layers in depth order."""
        found: list[Segment] = []
        for index, kind in enumerate(self.kinds):
            sparse = kind in "MSR"
            if (found and found[-1].sparse == sparse and kind != "M") or (
                found and found[-1].sparse and kind == "M" and self.kinds[index - 1] == "M"
            ):
                found[-1] = found[-1]._replace(stop=index + 1)
            else:
                found.append(Segment(sparse, index, index + 1))
        return tuple(found)

    def __len__(self) -> int:
        return len(self.kinds)

    def __str__(self) -> str:
        return " ".join(_print_group(group) for group in self.groups)


def parse_layout(text: str, *, allow_no_dense: bool = False) -> Layout:
    """Parse and check a layout string.

    Args:
        text: runs such as `2P` or `28D` and groups such as `4(1M3S1R1D)`, separated by blanks or not.
        allow_no_dense: accept modules without a D after their R. The paper found that training then collapses.

    Returns:
        The layout; `parse_layout(str(layout)) == layout`.

    Raises:
        ValueError: what is wrong, where, and what is accepted.
    """
    groups: list[Group] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(
                f"layout {text!r}: cannot read {text[position:].strip()!r}; "
                "write runs such as 2P and groups such as 4(1M3S1R1D)"
            )
        repeat, body, count, kind = match.groups()
        runs = _parse_runs(body, text) if repeat else (_make_run(count, kind, text),)
        if repeat and int(repeat) < 1:
            raise ValueError(f"layout {text!r}: a group is repeated at least once, found {repeat}({body})")
        if repeat == "1" or not repeat:
            groups.extend(Group(1, (run,)) for run in runs)
        else:
            groups.append(Group(int(repeat), runs))
        position = match.end()
    layout = Layout(tuple(groups))
    layers = sum(run.count * group.repeat for group in groups for run in group.runs)
    if layers > MOST_LAYERS:
        raise ValueError(f"layout {text!r} has {layers} layers; accepted are up to {MOST_LAYERS}")
    _check(layout, allow_no_dense)
    return layout


def is_temporal(index: int) -> bool:
    """Whether layer `index` of a video model attends over frames: Latte alternates spatial (even) and temporal (odd)."""
    return index % 2 == 1


def _make_run(count: str, kind: str, text: str) -> Run:
    if kind not in KINDS:
        raise ValueError(f"layout {text!r}: unknown layer kind {kind!r}; the kinds are {', '.join(KINDS)}")
    if int(count) < 1:
        raise ValueError(f"layout {text!r}: a run has at least one layer, found {count}{kind}")
    return Run(int(count), kind)


def _parse_runs(body: str, text: str) -> tuple[Run, ...]:
    runs: list[Run] = []
    position = 0
    while position < len(body):
        match = _RUN.match(body, position)
        if match is None:
            raise ValueError(f"layout {text!r}: cannot read {body[position:]!r} inside ({body}); write runs such as 1M3S")
        runs.append(_make_run(match.group(1), match.group(2), text))
        position = match.end()
    if not runs:
        raise ValueError(f"layout {text!r}: empty group")
    return tuple(runs)


def _print_group(group: Group) -> str:
    body = "".join(f"{run.count}{run.kind}" for run in group.runs)
    return body if group.repeat == 1 else f"{group.repeat}({body})"


def _check(layout: Layout, allow_no_dense: bool) -> None:
    """Raise ValueError with the layer and the reason where the order of kinds makes no sense."""
    kinds, text = layout.kinds, str(layout)
    if not kinds:
        raise ValueError("the layout is empty; dense Latte-XL, for example, is 28D")
    opened: int | None = None  # layer of the M that opened the current module
    for index, kind in enumerate(kinds):
        previous = kinds[index - 1] if index else ""
        if kind == "P" and kinds[:index].strip("P"):
            raise ValueError(f"layout {text!r}: layer {index} is P, but P layers stand at the bottom only")
        if kind == "M":
            if opened is not None and previous != "M":
                raise ValueError(f"layout {text!r}: layer {index} is M, but the M of layer {opened} has no R yet")
            opened = index if opened is None else opened
        if kind in "SR" and opened is None:
            raise ValueError(f"layout {text!r}: layer {index} is {kind}, but no M opens a sparse module before it")
        if kind == "D" and opened is not None:
            raise ValueError(f"layout {text!r}: layer {index} is D, but the M of layer {opened} has no R yet")
        if previous == "R" and kind != "D" and not allow_no_dense:
            raise ValueError(
                f"layout {text!r}: no D after the R of layer {index - 1}; training collapses without "
                "(allow_no_dense accepts it)"
            )
        if kind == "R":
            opened = None
    if opened is not None:
        raise ValueError(f"layout {text!r}: the M of layer {opened} has no R")
    if kinds[-1] == "R" and not allow_no_dense:
        raise ValueError(
            f"layout {text!r}: no D after the R of layer {len(kinds) - 1}; training collapses without "
            "(allow_no_dense accepts it)"
        )
