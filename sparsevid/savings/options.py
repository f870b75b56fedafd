"""Savings by name and options, as they are typed: `static:every=2`."""

import inspect
import math
import re
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import combinations
from typing import Any, get_args

from sparsevid.savings.base import Policy, SavingError, options_of
from sparsevid.savings.faster import Faster
from sparsevid.savings.first_block import FirstBlock
from sparsevid.savings.fits import FittedPolicy
from sparsevid.savings.foresight import Foresight
from sparsevid.savings.guidance import Guidance
from sparsevid.savings.magcache import MagCache
from sparsevid.savings.merging import Merging
from sparsevid.savings.pab import Pab
from sparsevid.savings.static import Static
from sparsevid.savings.steps import Steps
from sparsevid.savings.taylor import Taylor
from sparsevid.savings.teacache import TeaCache

POLICIES = (Steps, Static, FirstBlock, TeaCache, MagCache, Taylor, Pab, Foresight, Faster, Merging, Guidance)
SAVINGS: dict[str, type[Policy]] = {policy.name: policy for policy in POLICIES}
CALIBRATED: dict[str, type[FittedPolicy]] = {
    name: policy for name, policy in SAVINGS.items() if issubclass(policy, FittedPolicy)
}
LIST_WIDTH = 120  # columns
DIGITS = 9  # of a whole number, at most
_GRID = re.compile(rf"[1-9]\d{{0,{DIGITS - 1}}}(x[1-9]\d{{0,{DIGITS - 1}}}){{2}}")


def parse_saving(text: str) -> Policy:
    """A saving out of its name and options, such as `static:every=2` or `pab:spatial=2,temporal=4`.

    Raises:
        SavingError: no such saving or option, with the nearest, or a value that the option does not take.
    """
    if not isinstance(text, str):
        raise SavingError(f"a saving is given as text, such as static:every=2, got {text!r}")
    name, _, options = text.partition(":")
    if name == "none":
        raise SavingError("no saving 'none': none at all is an empty list, and on the command line `--saving none` alone")
    if name not in SAVINGS:
        raise SavingError(f"no saving {name!r}{_nearest(name, SAVINGS)}; accepted are {', '.join(SAVINGS)}")
    policy = SAVINGS[name]
    known = {each.name: each.type for each in options_of(policy)}
    values = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals and key not in known:
            accepted = ", ".join(f"{each}=…" for each in known)
            raise SavingError(f"saving {name}: {option!r} is no option with its value; accepted are {accepted}")
        if key not in known:
            raise SavingError(f"saving {name}: no option {key!r}{_nearest(key, known)}; accepted are {', '.join(known)}")
        if not equals:
            raise SavingError(f"saving {name}: option {key} needs a value, such as {key}=…")
        if key in values:
            raise SavingError(f"saving {name}: option {key} is given twice")
        values[key] = _read(name, key, value, known[key])
    return policy(**values)


def check_together(savings: Sequence[Policy]) -> None:
    """Refuse savings that do not go together.

    Raises:
        SavingError: one twice, two of one family, or two that decide about the half without a class; the message says why.
    """
    for one, other in combinations(savings, 2):
        if one.name == other.name:
            raise SavingError(f"saving {one.name} is given twice: {one} and {other}; a sampling takes one")
        if one.decides_null and other.decides_null:
            raise SavingError(
                f"savings {one.name} and {other.name} do not go together: each decides when the half without a class is "
                "computed, and what stands for it"
            )
        if one.family == other.family:
            raise SavingError(
                f"savings {one.name} and {other.name} do not go together: each decides what is kept from call to call; one of "
                "them goes with `merging` and with `guidance`"
            )


def parse_savings(texts: Sequence[str]) -> list[Policy]:
    """Savings that go together, in the order of their names, on which nothing depends; those that change nothing are left out.

    Raises:
        SavingError: as `parse_saving` and `check_together`.
    """
    savings = [parse_saving(text) for text in texts]
    check_together(savings)
    return sorted((saving for saving in savings if not saving.changes_nothing), key=lambda saving: saving.name)


def list_savings() -> str:
    """Each saving with all options and their defaults, as it is typed, and below it what it does."""
    rows = []
    for made in (policy() for policy in SAVINGS.values()):
        unset = [each.name for each in options_of(type(made)) if getattr(made, each.name) is None]
        words = (inspect.getdoc(made) or "").partition("\n\n")[0].split()
        rows.append(f"  {made}{''.join(f' [,{name}=…]' for name in unset)}")
        rows.append(textwrap.fill(" ".join(words), LIST_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(rows)


def _nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    near = get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def _read(name: str, key: str, value: str, kind: Any) -> Any:
    """A value of the option's type."""
    kinds = get_args(kind) or (kind,)
    readers = {
        int: (rf"[+-]?\d{{1,{DIGITS}}}", int, "a whole number"),
        float: (r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", float, "a number"),
    }
    for each, (pattern, read, _) in readers.items():
        if each in kinds and re.fullmatch(pattern, value, re.IGNORECASE) and math.isfinite(read(value)):
            return read(value)
    if bool in kinds and value in ("on", "off"):
        return value == "on"
    if any(get_args(each) or each is tuple for each in kinds) and _GRID.fullmatch(value):
        return tuple(map(int, value.split("x")))
    if str in kinds:
        return value
    numbers = [words for each, (_, _, words) in readers.items() if each in kinds]
    wanted = "on or off" if bool in kinds else numbers[0] if numbers else "TxHxW, such as 4x6x6"
    raise SavingError(f"saving {name}: {key} = {value!r}; it is {wanted}")
