"""Protocols: everything beside the data that a score depends on, under a name with a version.

The protocols of this package are the YAML files beside and below this module, named by their path without `.yaml`. They never
change once released; a new version is a new file. A score is written with its protocol in full.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsevid.evaluation.protocols.protocol import ADDED, BOTH, Protocol, Role, Side
from sparsevid.system.logging import get_logger
from sparsevid.system.schema import check_keys, defaults_of, read_overrides, read_yaml, yaml_text

__all__ = ["BOTH", "DEFAULT_PROTOCOLS", "Protocol", "Role", "Side", "list_protocols", "load_protocol", "with_fields"]

logger = get_logger(__name__)
FOLDER = Path(__file__).parent
SUFFIX = ".yaml"
# detector -> the protocol that is used when none is named
DEFAULT_PROTOCOLS = {
    "c3d-ucf101": "sparsevid/video-is-v2",
    "c3d-ucf101-torchscript": "stylegan-v/isv2048_ucf",
    "clip": "sparsevid/clip-score-v1",
    "i3d": "sparsevid/v2-state-dict",
    "i3d-torchscript": "sparsevid/v2",
    "inception-2015": "sparsevid/fid-v1",
    "inception-2015-adm": "adm/fid-50k",
    "inception-2015-logits": "sparsevid/is-v1",
    "motion-lucas-kanade": "sparsevid/fvmd-lk-v1",
    "stream-inception-2015": "sparsevid/stream-v1",
    "transnetv2": "sparsevid/fd-transnetv2-v2",
    "v-jepa": "sparsevid/jedi-v1",
    "videomae-v2": "cd-fvd",
}


def list_protocols() -> list[str]:
    """The names of this package's own protocols."""
    return sorted(_own())


def load_protocol(name_or_path: str | Path) -> Protocol:
    """Read a protocol.

    Args:
        name_or_path: a name out of `list_protocols()`, or the path of a YAML file with all fields of `Protocol`. Of a file
            that is older than a field, what it means is logged.

    Raises:
        ValueError: an unknown name, a file with unknown, missing or unusable keys, or a file that takes a name of this
            package's own, or one of its families of names, for something else.
    """
    own = _own()
    if str(name_or_path) in own:
        return _parse(own[str(name_or_path)].read_text(encoding="utf-8"), str(name_or_path))
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(own))
        raise ValueError(f"unknown protocol {str(name_or_path)!r}; known: {known}, or the path of a YAML file")
    protocol = _parse(yaml_text(path), str(path))
    families = {name.split("/")[0] for name in own}
    if protocol.name.split("/")[0] in families and (protocol.name not in own or protocol != load_protocol(protocol.name)):
        known = ", ".join(sorted(families))
        raise ValueError(f"{path}: names that begin with {known} are reserved, and this is not {protocol.name!r}")
    return protocol


def with_fields(protocol: Protocol, changes: Sequence[str]) -> Protocol:
    """A protocol with other values of some fields: under another name, for it is another measurement.

    Args:
        protocol: to begin with.
        changes: `field=value` with values as YAML has them, such as `real_stride=2`, `size=[64,64]` or `fake_count=null`. Those
            that say what the protocol says change nothing, its name neither.

    Raises:
        ValueError: a field is unknown or is the name, or its value is unusable.
    """
    where = f"{protocol.name}, as it is changed"
    values, said = protocol.as_dict(), OmegaConf.create()
    for text, change in read_overrides(changes, Protocol, "protocol option"):
        check_keys(change, Protocol, text)
        if "name" in change:
            raise ValueError(f"{text}: the name follows from what is changed; accepted are the other fields")
        said.update(change)
    changed = _typed(values | said, where).as_dict()
    differing = {key: value for key, value in changed.items() if value != values[key]}
    if not differing:
        return protocol
    spelled = ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in differing.items())
    return Protocol.from_dict({**changed, "name": f"{protocol.name} with {spelled}"})


def _own() -> dict[str, Path]:
    """Name → file of this package's protocols."""
    return {path.relative_to(FOLDER).as_posix().removesuffix(SUFFIX): path for path in FOLDER.rglob(f"*{SUFFIX}")}


def _parse(text: str, where: str) -> Protocol:
    values = read_yaml(text, Protocol, f"protocol {where}")
    check_keys(values, Protocol, f"protocol {where}")
    for key, value in ADDED.items():
        if key not in values:
            logger.warning("protocol %s: without %s it means %s, as all did before there was the field", where, key, value)
            values[key] = value
    known = [each.name for each in fields(Protocol)]
    missing = [key for key in known if key not in values]
    if missing:
        raise ValueError(f"protocol {where}: missing {', '.join(missing)}; a protocol leaves nothing to a default")
    return _typed(OmegaConf.to_container(values), where)


def _typed(plain: Any, where: str) -> Protocol:
    """A protocol of plain values, each of the type of its field."""
    config = defaults_of(Protocol)
    OmegaConf.set_readonly(config, False)  # until it is whole
    for key in (each.name for each in fields(Protocol)):
        try:
            config.merge_with({key: plain[key]})
            OmegaConf.resolve(config)
        except OmegaConfBaseException as error:
            raise ValueError(f"protocol {where}: {key}: {str(error).splitlines()[0]}") from error
    plain = OmegaConf.to_container(config)
    return Protocol.from_dict(plain)
