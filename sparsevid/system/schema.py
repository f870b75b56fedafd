"""What YAML says, read as its schema wants it; and the one check that it is among what can be said, with a hint for slips."""

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeGuard, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

AS_TYPED = "as typed"  # in a field's metadata: text all through, for a schema that is known later
_TEXT, _NULL, _MAPPING = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "null", "map"))
_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{")  # with no backslash before it, or pairs of them, which are one each
_NONE = ("", "~", "null", "Null", "NULL")


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
        if _is_section(item.type):
            keys += all_keys(item.type, f"{prefix}{item.name}.")
    return keys


def defaults_of(schema: type) -> DictConfig:
    """A dataclass with its defaults, for values to be laid over by `merge_with`, which checks their types.

    Args:
        schema: the dataclass; whatever is done to the result changes nothing of the next.

    Returns:
        Keys and values, writable or not as the dataclass is.
    """
    return copy.deepcopy(_typed_defaults(schema))  # a fifth of the time that making it anew takes


@cache
def _typed_defaults(schema: type) -> DictConfig:
    return OmegaConf.structured(schema)


def _is_section(wanted: Any) -> TypeGuard[type]:
    """Whether a type is a dataclass, whose fields are keys."""
    return isinstance(wanted, type) and dataclasses.is_dataclass(wanted)


def _check_section(values: Mapping[Any, Any], schema: type, source: str, prefix: str, known: list[str]) -> None:
    fields = {item.name: item.type for item in dataclasses.fields(schema)}
    for key in values:
        if key not in fields:
            name = f"{prefix}{key}"
            # A whole other spelling, or the right name in the wrong section.
            near = get_close_matches(name, known, n=1, cutoff=0.5) or [k for k in known if k.rsplit(".", 1)[-1] == key][:1]
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{source}: unknown key {name!r}; {hint}accepted there: {', '.join(fields)}")
        if _is_section(section := fields[key]):
            if not isinstance(values[key], Mapping):
                raise ValueError(f"{source}: {prefix}{key} is a section with keys, got {values[key]!r}")
            _check_section(values[key], section, source, f"{prefix}{key}.", known)


def read_yaml(text: str, schema: type, where: str) -> DictConfig:
    """Read a file of YAML as its schema wants it.

    YAML 1.1 makes numbers, dates and truth values of `007`, `2024_11_28`, `1:30` and `on`. Where the schema says text, a scalar
    is the text that was typed; elsewhere it is what YAML says. `null` stays none where there may be none.

    Args:
        text: the file's.
        schema: the dataclass; its annotations must be types, not strings. A field of metadata `AS_TYPED` is text all through.
        where: what the file is called in the message.

    Returns:
        Keys and values; they are not checked against the schema otherwise.

    Raises:
        ValueError: no YAML, no mapping of keys to values, or a reference to something other than keys, such as the environment:
            what others' files say is shown on pages and written into records.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return OmegaConf.create({})
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{where} holds no mapping of keys to values")
        _refuse_resolvers(node, where)
        _keep_text(node, schema)
        return _loaded(node)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from error


def read_overrides(overrides: Iterable[str], schema: type, what: str = "override") -> Iterator[tuple[str, DictConfig]]:
    """Read dotted settings such as `train.lr=1e-4` as their schema wants them, each by itself.

    The value is YAML, as in a file (see `read_yaml`); of a key that is text it is all that follows `=`, with or without YAML's
    quotation marks around it.

    Args:
        overrides: `key=value`.
        schema: the dataclass whose keys are set.
        what: what an override is called in messages.

    Yields:
        What to call the override in a message, and the change that it makes.

    Raises:
        ValueError: another form, or a value that is no YAML.
    """
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ValueError(f"{what} {override!r} is not of the form key=value")
        if override != override.encode("utf-8", "ignore").decode("utf-8"):
            raise ValueError(f"{what} {override!r} has bytes that are no UTF-8, which YAML cannot hold: make a link to it")
        keys = key.split(".")
        try:
            node = _value_node(value.strip(), _type_at(schema, keys))
            for name in reversed(keys):
                node = yaml.MappingNode(_MAPPING, [(yaml.ScalarNode(_TEXT, name, style='"'), node)])
            _keep_text(node, schema)
            yield f"{what} {override}", _loaded(node)
        except yaml.YAMLError as error:
            raise ValueError(f"{what} {override!r}: the value is not valid YAML: {error}") from error


def yaml_text(path: Path) -> str:
    """What a file of YAML holds.

    Raises:
        ValueError: it is no text in UTF-8.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML, which is text in UTF-8: {error}") from error


def told_of(error: OmegaConfBaseException) -> str:
    """What OmegaConf found wrong with a value, in a line, with its key."""
    text = str(error).splitlines()[0]
    if "is not a ListConfig" in text:
        text = "a list is wanted, such as [64,64]"
    elif "to DictConfig" in text or "is not a DictConfig" in text:
        text = "a section of keys and values is wanted"
    return f"{error.full_key or ''}: {text}"


def escaped(values: Any) -> Any:
    r"""Plain values whose texts `read_yaml` reads as they are: `${`, which begins a reference to another key, is written `\${`.

    Args:
        values: dicts, lists and scalars; keys are left alone, for they are never references.
    """
    if isinstance(values, dict):
        return {name: escaped(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [escaped(value) for value in values]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", values) if isinstance(values, str) else values


def _refuse_resolvers(node: yaml.Node, where: str) -> None:
    if isinstance(node, yaml.ScalarNode):
        if (begun := _REFERENCE.search(node.value)) and ":" in node.value[begun.end() :]:
            raise ValueError(f"{where}: {node.value!r}: a reference names another key, such as ${{data.root}}; what asks the "
                             "environment is not resolved")  # fmt: skip
        return
    for each in node.value:
        for part in each if isinstance(each, tuple) else (each,):
            _refuse_resolvers(part, where)


def _loaded(node: yaml.MappingNode) -> DictConfig:
    """OmegaConf's own reading of YAML, of which keys that are there twice are an error."""
    try:
        return OmegaConf.create(yaml.serialize(node, allow_unicode=True))
    except yaml.MarkedYAMLError as error:
        raise yaml.YAMLError(error.problem) from error  # its line would be that of the text between
    except OmegaConfBaseException as error:  # `${` of a reference that does not end
        raise yaml.YAMLError(str(error).splitlines()[0]) from error


def _keep_text(node: yaml.Node, wanted: Any) -> None:
    """Mark the scalars below a node that the type `wanted` says are text."""
    wanted, optional = _without_none(wanted)
    inside = get_args(wanted)
    if isinstance(node, yaml.ScalarNode):
        none = node.tag == _NULL and (optional or wanted is AS_TYPED or not node.value)
        if wanted in (str, AS_TYPED) and node.style is None and not none:
            node.tag, node.style = _TEXT, '"'  # quoted, it is text to every reader
    elif isinstance(node, yaml.SequenceNode):
        listed = inside[0] if get_origin(wanted) in (list, tuple) else wanted if wanted is AS_TYPED else None
        for each in node.value:
            _keep_text(each, listed)
    elif _is_section(wanted):
        for key, value in node.value:
            _keep_text(value, _field_types(wanted).get(key.value))
    elif get_origin(wanted) is dict or wanted is AS_TYPED:
        for key, value in node.value:
            _keep_text(key, inside[0] if inside else AS_TYPED)
            _keep_text(value, inside[1] if inside else AS_TYPED)


def _value_node(value: str, wanted: Any) -> yaml.Node:
    """The value of an override. Text is taken whole: YAML would cut it at ` #`, and make a mapping of `a: b`."""
    wanted, _ = _without_none(wanted)
    raw = yaml.ScalarNode(_TEXT, value, style='"') if wanted in (str, AS_TYPED) else None
    try:
        node = yaml.compose(value, yaml.SafeLoader) or yaml.ScalarNode(_NULL, value)
    except yaml.YAMLError:
        if raw is None:
            raise
        return raw
    listed = wanted is AS_TYPED and isinstance(node, yaml.CollectionNode) and node.flow_style
    if raw is None or listed or value in _NONE or (isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')):
        return node
    return raw


def _type_at(schema: Any, keys: list[str]) -> Any:
    """The type of a dotted key; None if there is no such key."""
    for key in keys:
        schema, _ = _without_none(schema)
        if _is_section(schema):
            schema = _field_types(schema).get(key)
        elif schema is not AS_TYPED:
            schema = get_args(schema)[1] if get_origin(schema) is dict else None
    return schema


def _field_types(schema: type) -> dict[str, Any]:
    return {item.name: AS_TYPED if AS_TYPED in item.metadata else item.type for item in dataclasses.fields(schema)}


def _without_none(wanted: Any) -> tuple[Any, bool]:
    """A type without `| None`, and whether it had that."""
    types = [each for each in get_args(wanted) if each is not NoneType]
    optional = get_origin(wanted) in (Union, UnionType) and NoneType in get_args(wanted)
    return (types[0], True) if optional and len(types) == 1 else (wanted, optional)
