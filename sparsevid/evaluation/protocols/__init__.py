"""Protocols: everything beside the data that a score depends on, under a name with a version.

The protocols of this package are the YAML files beside this module, named `sparsevid/<file>`. They never change once
released; a new version is a new file. A score is written with its protocol in full, as a `ProtocolRecord`.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sparsevid.schema import check_keys

PREFIX = "sparsevid/"
# detector -> the protocol that is used when none is named
DEFAULT_PROTOCOLS = {"transnetv2": "sparsevid/fd-transnetv2-v1"}
COVARIANCES = ("unbiased", "biased")


@dataclass(frozen=True)
class Protocol:
    """What a score depends on beside the data.

    Attributes:
        name: with a version. Names that begin with `sparsevid/` are this package's own.
        detector: a name that `build_detector` knows.
        frames: frames of a clip.
        real_stride: step between a clip's frames in a real video, whose start is random.
        fake_stride: the same in a generated video, which is read from its first frame.
        size: (height, width) in pixels to which videos are resized and cropped before the detector.
        count: clips on each side at most; None takes one of every video.
        clips_per_video: real clips of one video at most; None takes as many as `count` needs.
        seed: of the real clips' starts.
        covariance: "unbiased" (1/(N − 1)) or "biased" (1/N).
        split: the part of the real data; `all`: every video.
    """

    name: str
    detector: str
    frames: int
    real_stride: int
    fake_stride: int
    size: tuple[int, int]
    count: int | None
    clips_per_video: int | None
    seed: int
    covariance: str
    split: str

    def __post_init__(self) -> None:
        positive = {key: getattr(self, key) for key in ("frames", "real_stride", "fake_stride")}
        positive |= {"height": self.size[0], "width": self.size[-1]}
        if self.clips_per_video is not None:
            positive["clips_per_video"] = self.clips_per_video
        for key, value in positive.items():
            if value < 1:
                raise ValueError(f"protocol {self.name!r}: {key} is at least 1, got {value}")
        if len(self.size) != 2:
            raise ValueError(f"protocol {self.name!r}: size is [height, width], got {list(self.size)}")
        if self.count is not None and self.count < 2:
            raise ValueError(f"protocol {self.name!r}: count is at least 2, for a covariance, got {self.count}")
        if self.seed < 0:
            raise ValueError(f"protocol {self.name!r}: seed is not negative, got {self.seed}")
        if self.covariance not in COVARIANCES:
            accepted = ", ".join(COVARIANCES)
            raise ValueError(f"protocol {self.name!r}: covariance is one of {accepted}, got {self.covariance!r}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Protocol":
        """Take back what `as_dict` gave.

        Raises:
            ValueError: a field is missing, unknown or unusable.
        """
        try:
            return cls(**{**values, "size": tuple(values["size"])})
        except (TypeError, KeyError) as error:
            known = ", ".join(each.name for each in dataclasses.fields(cls))
            raise ValueError(f"not the fields of a protocol ({error}); they are {known}") from error

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON has them."""
        return {**asdict(self), "size": list(self.size)}


@dataclass(frozen=True)
class ProtocolRecord:
    """A score with everything it depends on; written beside what was scored.

    Attributes:
        metric: such as FD-TransNetV2.
        score: its value; lower is better.
        protocol: all fields of the protocol.
        protocol_fingerprint: SHA-256 over them; None if the features were made without a protocol.
        detector: name, weight checksum and preprocessing of the detector.
        real: the real clips: root, number of clips and videos, formats, rejects, data fingerprint.
        fake: the same of the generated ones.
        warnings: what makes this score less comparable than the protocol intends.
        versions: of the software.
    """

    metric: str
    score: float
    protocol: dict[str, Any] | None
    protocol_fingerprint: str | None
    detector: dict[str, str]
    real: dict[str, Any]
    fake: dict[str, Any]
    warnings: tuple[str, ...]
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return json.loads(json.dumps(asdict(self)))

    def save(self, path: Path) -> None:
        """Write the record as JSON under a temporary name, then rename it."""
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            draft.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def list_protocols() -> list[str]:
    """The names of this package's own protocols."""
    names = (each.name for each in files(__name__).iterdir())
    return sorted(PREFIX + name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_protocol(name_or_path: str | Path) -> Protocol:
    """Read a protocol.

    Args:
        name_or_path: a name out of `list_protocols()`, or the path of a YAML file with all fields of `Protocol`.

    Raises:
        ValueError: an unknown name, a file with unknown, missing or unusable keys, or a file that takes a name of this
            package's own for something else.
    """
    own = list_protocols()
    if str(name_or_path) in own:
        file = files(__name__) / f"{str(name_or_path).removeprefix(PREFIX)}.yaml"
        return _parse(file.read_text(encoding="utf-8"), str(name_or_path))
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"unknown protocol {str(name_or_path)!r}; known: {', '.join(own)}, or the path of a YAML file")
    protocol = _parse(path.read_text(encoding="utf-8"), str(path))
    if protocol.name.startswith(PREFIX) and (protocol.name not in own or protocol != load_protocol(protocol.name)):
        raise ValueError(f"{path}: names that begin with {PREFIX!r} are reserved, and this is not {protocol.name!r}")
    return protocol


def _parse(text: str, where: str) -> Protocol:
    try:
        values = OmegaConf.create(text)
    except YAMLError as error:
        raise ValueError(f"protocol {where} is not valid YAML: {error}") from error
    if not isinstance(values, DictConfig):
        raise ValueError(f"protocol {where} holds no mapping of keys to values")
    check_keys(values, Protocol, f"protocol {where}")
    known = [each.name for each in dataclasses.fields(Protocol)]
    missing = [key for key in known if key not in values]
    if missing:
        raise ValueError(f"protocol {where}: missing {', '.join(missing)}; a protocol leaves nothing to a default")
    config = OmegaConf.structured(Protocol)
    for key in known:
        try:
            config = OmegaConf.merge(config, {key: values[key]})
        except OmegaConfBaseException as error:
            raise ValueError(f"protocol {where}: {key}: {str(error).splitlines()[0]}") from error
    fields = OmegaConf.to_container(config, resolve=True)
    return Protocol.from_dict(fields)
