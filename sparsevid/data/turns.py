"""Draws that are even over classes: where some of many are taken, the first of something sorted are not all of one class."""

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def drawn_classes(labels: Sequence[Hashable], generator: torch.Generator) -> list[list[int]]:
    """The positions of each class, both classes and positions in a drawn order.

    Args:
        labels: class of each position; None is a class like any other. Which labels are equal matters, and nothing else.
        generator: of the draws.

    Returns:
        For each class the positions that have its label; together every position once.
    """
    classes: dict[Hashable, list[int]] = {label: [] for label in labels}
    for position in torch.randperm(len(labels), generator=generator).tolist():
        classes[labels[position]].append(position)
    members = list(classes.values())
    return [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]


def in_turns(groups: Sequence[Sequence[T]]) -> Iterator[T]:
    """One of each group, then a second of each that has one, … to the end of all."""
    for turn in range(max(map(len, groups), default=0)):
        yield from (group[turn] for group in groups if turn < len(group))
