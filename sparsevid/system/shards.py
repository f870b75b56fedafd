"""Tensors of many items on disk, in shards: written by all ranks, resumable, and the same files for any number of ranks.

    <folder>/
      shards/shard-00000.safetensors    rows of whole items, one after the other
      shards/shard-00000.json           the shard's record, from which an interrupted writer goes on

A shard that is there and whole is kept for as long as all its items are wanted; the items that no such shard holds are dealt
out to new ones. So a writing that was cut short goes on, and an item that had to be taken out costs its own shard. What the
items are, and the file that names the finished shards, are the caches' own.
"""

import hashlib
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sparsevid.system.atomic import renamed, write_json
from sparsevid.system.checksums import file_sha256
from sparsevid.system.distributed import barrier, broadcast_object, is_main, rank, world_size
from sparsevid.system.locks import folder_locked
from sparsevid.system.logging import get_logger, progress
from sparsevid.system.shared import check_shared
from sparsevid.system.threads import thread_pool

SHARD_FOLDER = "shards"
MEGABYTE = 1 << 20
SHARD_BYTES = 256 * MEGABYTE
OPEN_SHARDS = 32  # kept open by a process; each is a memory map
_SHARD_NAME = re.compile(r"shard-[0-9]{5,}\.safetensors")
_SHARD_FILE = re.compile(r"\.?(shard-[0-9]{5,})\.(safetensors|json)(\.[0-9a-f]+\.partial)?")
Item = TypeVar("Item", bound=Hashable)
Cache = TypeVar("Cache", bound="ShardedCache")
Record = TypeVar("Record", bound="Shard")

logger = get_logger(__name__)


@dataclass(frozen=True)
class Shard:
    """What is known of a finished shard; a cache adds the items whose rows it holds.

    Attributes:
        name: of its file.
        bytes: of the file.
        sha256: of the file, in hexadecimal.
    """

    name: str
    bytes: int
    sha256: str

    @staticmethod
    def file_values(values: dict[str, Any]) -> tuple[str, int, str]:
        """Name, bytes and SHA-256 out of the JSON form. Raises ValueError, KeyError, TypeError if it is not that."""
        if not _SHARD_NAME.fullmatch(values["name"]):
            raise ValueError(f"{values['name']!r} is not the name of a shard")
        return values["name"], int(values["bytes"]), str(values["sha256"])

    def problem(self, folder: Path, *, content: bool) -> str | None:
        """What is wrong with the shard's file in a cache, or None.

        Args:
            folder: the cache.
            content: compare the SHA-256 too, which reads the whole file.
        """
        path = folder / SHARD_FOLDER / self.name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != self.bytes:
            return f"{path} has {path.stat().st_size} bytes instead of {self.bytes}"
        if content and file_sha256(path) != self.sha256:
            return f"{path} does not have its recorded checksum"
        return None


class ShardedCache:
    """A finished cache: a frozen dataclass of `folder`, `dtype`, `shards` and what else its index, written last, says of it."""

    kind: ClassVar[str]  # in messages
    file: ClassVar[str]  # name of the index
    form: ClassVar[int]  # of the index
    dtypes: ClassVar[Collection[str]]
    folder: Path
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls: type[Cache], folder: str | Path) -> Cache:
        """Read the index, and compare the shards' sizes with it.

        Raises:
            FileNotFoundError: no finished cache there.
            ValueError: the index is damaged or of another format, or a shard is missing or of another size.
        """
        folder, path = Path(folder), Path(folder) / cls.file
        if not path.is_file():
            begun = " It was begun and not finished: give the same command again." if (folder / SHARD_FOLDER).is_dir() else ""
            raise FileNotFoundError(f"{folder} is no {cls.kind}: it has no {cls.file}.{begun}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != cls.form:
                raise ValueError(f"another format; accepted: {cls.form}")
            if values["dtype"] not in cls.dtypes:
                raise ValueError(f"data type {values['dtype']!r}; accepted: {', '.join(cls.dtypes)}")
            cache = cls.from_values(folder, values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} does not describe a {cls.kind}: {error}") from error
        cache.verify(content=False)
        return cache

    @classmethod
    def from_values(cls: type[Cache], folder: Path, values: dict[str, Any]) -> Cache:
        """From the index's values. Raises ValueError, KeyError, TypeError, AttributeError if they are not that."""
        raise NotImplementedError

    def save(self) -> None:
        """Write the index."""
        assert is_dataclass(self)
        values = asdict(self) | {"format": self.form}
        del values["folder"]
        write_json(self.folder / self.file, values, indent=None)

    def verify(self, *, content: bool = True) -> None:
        """Raise ValueError if shards are missing, of another size or, by `content`, which reads them, of another SHA-256."""
        problems = [problem for shard in self.shards if (problem := shard.problem(self.folder, content=content))]
        if problems:
            named = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise ValueError(f"{self.folder} is damaged: {named}. The command that made it makes these shards again")


class OpenShards:
    """Files of a cache, opened when they are asked for. Can be pickled: each process opens them for itself.

    Args:
        folder: the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, safe_open] = OrderedDict()  # least recently used first

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_open": OrderedDict()}

    def __len__(self) -> int:
        """How many are open now: so few that memory maps do not run out."""
        return len(self._open)

    def __call__(self, shard: Shard) -> safe_open:
        """A shard's file. Raises ValueError if it is missing or has another size, SafetensorError if it is damaged."""
        if shard.name not in self._open:
            if problem := shard.problem(self.folder, content=False):
                raise ValueError(problem)
            self._open[shard.name] = safe_open(self.folder / SHARD_FOLDER / shard.name, "pt")
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard.name)
        return self._open[shard.name]


@dataclass(frozen=True)
class ShardPlan(Generic[Item]):
    """A shard to write: its name and its items, in their order."""

    name: str
    items: tuple[Item, ...]


def plan_shards(
    items: Sequence[Item], bytes_of: Callable[[Item], int], shard_bytes: int, taken: Collection[str] = ()
) -> list[ShardPlan[Item]]:
    """Deal whole items out to shards, in order; a function of these arguments alone, not of ranks.

    Args:
        items: what is to be written.
        bytes_of: of one on disk.
        shard_bytes: limit of a shard; an item that is larger is a shard of its own.
        taken: names that no shard may have.

    Returns:
        The shards.
    """
    groups: list[list[Item]] = []
    filled = 0
    for item in items:
        if not groups or filled + bytes_of(item) > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += bytes_of(item)
    names = (name for i in count() if (name := f"shard-{i:05d}.safetensors") not in taken)
    return [ShardPlan(name, tuple(group)) for group, name in zip(groups, names, strict=False)]


class ShardWriter(ABC, Generic[Item, Record]):
    """One writing of a cache.

    Args:
        folder: the cache; made if need be.
        settings: what decides the shards' content; it stands in every shard's record.
        threads: of this rank that read what is there.

    Attributes:
        index: name of the file that is written last and names the shards.
        what: the items, in messages.
        unit: what the progress bar counts.
    """

    index: ClassVar[str]
    what: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, folder: Path, settings: dict[str, Any], threads: int) -> None:
        self.folder, self.settings, self.threads = Path(folder), settings, threads

    @abstractmethod
    def key(self, item: Item) -> Hashable:
        """An item as records name it."""

    @abstractmethod
    def bytes_of(self, item: Item) -> int:
        """Of an item's rows on disk."""

    @abstractmethod
    def units(self, item: Item) -> int:
        """How far the progress bar goes on with an item."""

    @abstractmethod
    def read_record(self, values: dict[str, Any]) -> Record:
        """A shard out of its JSON form. Raises ValueError, KeyError, TypeError if it is not that."""

    @abstractmethod
    def keys_of(self, shard: Record) -> tuple[Hashable, ...]:
        """The keys of a finished shard's items, in the order of its rows."""

    @abstractmethod
    def named(self) -> set[str]:
        """Names of the shards in the file that names them. Raises FileNotFoundError, ValueError if there is none."""

    @abstractmethod
    def tensors(self, plan: ShardPlan[Item], report: Callable[[int], Any]) -> dict[str, Tensor]:
        """A shard's content; `report` is told how many units are done."""

    @abstractmethod
    def record(self, plan: ShardPlan[Item], size: int, sha256: str) -> Record:
        """The record of a shard that was written, a dataclass."""

    @abstractmethod
    def finish(self, shards: list[Record]) -> None:
        """Write the file that names the shards, in the order of their first items."""

    def write(self, items: Sequence[Item]) -> None:
        """Write all items, as far as whole shards do not hold them. All ranks call it together.

        Shards that are of no use any more are removed once the new cache is finished: no run should be reading them then.

        Raises:
            ValueError: the folder holds shards that were made with other settings or of other items alone, is not the same
                for all ranks or is being written by another process, or the disk has no room.
            OSError: the folder cannot be written.
        """
        with folder_locked(self.folder):
            self._write(items)

    def _write(self, items: Sequence[Item]) -> None:
        check_shared(self.folder, ValueError)
        records = self._records(items)
        kept, missing = broadcast_object(self._plan(items, records) if is_main() else None)
        self._check_space(kept, missing)
        if is_main():
            self._retract(missing)
        barrier()  # nobody writes before everybody has seen what was there
        (self.folder / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
        self._write_share(missing[rank() :: world_size()])
        barrier()
        if is_main():
            self._finish(items, kept, missing)
        barrier()

    def _records(self, items: Sequence[Item]) -> list[Record]:
        """The records of the folder's shards, by name.

        Raises:
            ValueError: the folder holds a shard that was made with other settings, or shards of other items alone.
        """
        folder = self.folder / SHARD_FOLDER
        names = sorted(path.name for path in folder.glob("shard-*.json") if _SHARD_FILE.fullmatch(path.name))
        records = []
        for path in (folder / name for name in names):
            try:
                settings, record = self._read(path)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s cannot be read, its shard is made again: %s", path, error)
                continue
            pairs = {key: (settings.get(key), value) for key, value in self.settings.items()}
            differing = [f"{key}: {old} there, {new} asked for" for key, (old, new) in pairs.items() if old != new]
            if differing:
                raise ValueError(
                    f"{self.folder} holds shards that were made with other settings ({'; '.join(differing)}): "
                    "give another folder, or delete this one"
                )
            records.append(record)
        wanted = set(map(self.key, items))
        if records and not any(key in wanted for record in records for key in self.keys_of(record)):
            raise ValueError(f"{self.folder} is a cache of other {self.what} alone: give another folder, or delete this one")
        return records

    def _read(self, path: Path) -> tuple[dict[str, Any], Record]:
        """The settings that a shard was made with, and its record. Raises ValueError, KeyError, TypeError if it is neither."""
        values = json.loads(path.read_text(encoding="utf-8"))
        record = self.read_record(values["shard"])
        if Path(record.name).stem != path.stem:
            raise ValueError(f"it names {record.name}")
        return dict(values["settings"]), record

    def _plan(self, items: Sequence[Item], records: Sequence[Record]) -> tuple[list[Record], list[ShardPlan[Item]]]:
        """The shards that stay, and those to write for the items that these do not hold."""
        lacking = {self.key(item): item for item in items}
        kept: list[Record] = []
        taken: set[str] = set()  # the file that names shards may name these: they stay until the new one is there
        with thread_pool(self.threads) as pool, progress(total=len(records), desc="checking shards", delay=2) as bar:
            problems = pool.map(lambda each: each.problem(self.folder, content=True), records)
            for record, problem in zip(records, problems, strict=True):
                bar.update()
                if problem:
                    logger.warning("%s; it is made again", problem)
                    continue
                taken.add(record.name)
                keys = set(self.keys_of(record))
                if lacking.keys() >= keys:
                    kept.append(record)
                    for key in keys:
                        del lacking[key]
        return kept, plan_shards(list(lacking.values()), self.bytes_of, self.settings["shard_bytes"], taken)

    def _retract(self, missing: Sequence[ShardPlan[Item]]) -> None:
        """Remove a file that names shards to be written: whoever opened it meanwhile might find other items in them."""
        try:
            stands = self.named().isdisjoint(shard.name for shard in missing)
        except (FileNotFoundError, ValueError):  # it has to be written anew in any case
            stands = False
        if not stands:
            (self.folder / self.index).unlink(missing_ok=True)

    def _check_space(self, kept: Sequence[Record], missing: Sequence[ShardPlan[Item]]) -> None:
        """Say what will be written, and raise ValueError if the disk has no room for it."""
        items = [item for plan in missing for item in plan.items]
        there, needed = sum(shard.bytes for shard in kept) / MEGABYTE, sum(map(self.bytes_of, items)) / MEGABYTE
        folder = self.folder.absolute()
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free / MEGABYTE
        what = f"{len(items)} {self.what}"
        what += f" ({sum(map(self.units, items))} {self.unit})" if self.unit != self.what else ""
        logger.info(
            "%s: %d shards, %.1f MB, are there and whole; to write: %s, %d shards, %.1f MB, free: %.1f MB",
            self.folder, len(kept), there, what, len(missing), needed, free,
        )  # fmt: skip
        if needed > free:
            raise ValueError(f"{self.folder}: {needed:.1f} MB are to be written, and {free:.1f} MB are free on this disk")

    def _write_share(self, share: Sequence[ShardPlan[Item]]) -> None:
        """Write a rank's shards. What is cut short here leaves only a `.partial`."""
        if not share:
            return
        name = f"encoding (rank 0 of {world_size()})" if world_size() > 1 else "encoding"
        total = sum(self.units(item) for shard in share for item in shard.items)
        with progress(total=total, desc=name, unit=f" {self.unit}") as bar:
            for plan in share:
                content = save(self.tensors(plan, bar.update))
                path = self.folder / SHARD_FOLDER / plan.name
                with renamed(path) as draft:
                    draft.write_bytes(content)
                record = self.record(plan, len(content), hashlib.sha256(content).hexdigest())
                own = {"settings": self.settings, "shard": asdict(record)}
                write_json(path.with_suffix(".json"), own, indent=None)

    def _finish(self, items: Sequence[Item], kept: Sequence[Record], written: Sequence[ShardPlan[Item]]) -> None:
        """Finish the cache, then remove shards that it does not name: damaged ones, and those of items no longer wanted."""
        folder = self.folder / SHARD_FOLDER
        shards = [*kept, *(self._read((folder / shard.name).with_suffix(".json"))[1] for shard in written)]
        position = {self.key(item): i for i, item in enumerate(items)}
        self.finish(sorted(shards, key=lambda shard: position[self.keys_of(shard)[0]]))
        named = {Path(shard.name).stem for shard in shards}
        for path in sorted(folder.iterdir()):
            found = _SHARD_FILE.fullmatch(path.name)
            if found and (found[1] not in named or found[3]):
                logger.info("%s is of no use any more, it is removed", path)
                path.unlink()
