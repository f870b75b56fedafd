"""The one check that what a YAML file says is among what can be said, with a hint for slips of the pen."""

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any


def check_keys(values: Mapping[Any, Any], schema: type, source: str) -> None:
    """Compare the keys of a file with the fields of a dataclass, also in the sections that are dataclasses themselves.

    Args:
        values: what the file holds; a `dict` or OmegaConf's `DictConfig`.
        schema: the dataclass; its annotations must be types, not strings.
        source: what the file is called in the message.

    Raises:
        ValueError: the first key that the schema does not have, with the nearest valid one and those accepted there; or a
            section that is no mapping.
    """
    _check_section(values, schema, source, "", all_keys(schema))


def all_keys(schema: type, prefix: str = "") -> list[str]:
    """Every key of a dataclass in dotted form, sections before what is in them."""
    keys = []
    for item in dataclasses.fields(schema):
        keys.append(prefix + item.name)
        if dataclasses.is_dataclass(item.type):
            keys += all_keys(item.type, f"{prefix}{item.name}.")
    return keys


def _check_section(values: Mapping[Any, Any], schema: type, source: str, prefix: str, known: list[str]) -> None:
    fields = {item.name: item.type for item in dataclasses.fields(schema)}
    for key in values:
        if key not in fields:
            name = f"{prefix}{key}"
            # A whole other spelling, or the right name in the wrong section.
            near = get_close_matches(name, known, n=1, cutoff=0.5) or [k for k in known if k.rsplit(".", 1)[-1] == key][:1]
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{source}: unknown key {name!r}; {hint}accepted there: {', '.join(fields)}")
        if dataclasses.is_dataclass(fields[key]):
            if not isinstance(values[key], Mapping):
                raise ValueError(f"{source}: {prefix}{key} is a section with keys, got {values[key]!r}")
            _check_section(values[key], fields[key], source, f"{prefix}{key}.", known)
