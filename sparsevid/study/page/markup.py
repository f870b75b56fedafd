"""HTML and SVG out of Python values: whatever is not markup already is escaped, so that no name becomes an element."""

import re
from collections.abc import Iterable
from html import escape
from typing import Any

from sparsevid.system.logging import printable

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # that XML cannot hold
VOID = ("img", "input", "wbr")  # elements of HTML that hold nothing and are not closed


class Markup(str):
    """Text that is markup and stands as it is."""


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: such as `td` or `path`.
        children: markup, which stays as it is; texts and numbers, which are escaped; lists of these. None is nothing.
        attributes: an underscore is a hyphen, one at the end is dropped (`class_`). None and False are left out, True has no
            value; numbers are written short.
    """
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{together(children)}</{name}>")


def together(children: Iterable[Any]) -> Markup:
    """Children of an element, one after the other, without one around them."""
    return Markup("".join(_child(child) for child in children))


def short(value: float) -> str:
    """A coordinate to a twentieth of a pixel and better."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _attribute(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{_escaped(short(value) if isinstance(value, float) else value)}"'


def _child(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str):
        return together(child)
    return _escaped(child)


def _escaped(value: Any) -> str:
    return escape(_CONTROLS.sub("\ufffd", printable(str(value))))
