"""The paths that a run's configuration names, from where they mean the same."""

from dataclasses import replace
from pathlib import Path

from sparsevid.runs.config import RunConfig
from sparsevid.system.home import expand_home

YAML_SUFFIXES = (".yaml", ".yml")


def with_whole_paths(config: RunConfig) -> RunConfig:
    """A run with whole paths to what those need who read its checkpoints from another folder.

    Args:
        config: of the run, with paths relative to the working directory. What is no file or folder there, such as a hub id or
            the name of a card or a protocol, stays as it is.
    """
    autoencoder, data, text, monitor = config.autoencoder, config.data, config.text, config.monitor
    return replace(
        config,
        autoencoder=replace(autoencoder, source=_whole_folder(autoencoder.source)),
        data=replace(data, card=_whole_file(data.card), root=_whole_folder(data.root), captions=_whole_folder(data.captions)),
        text=replace(text, encoder=_whole_folder(text.encoder)),
        monitor=replace(monitor, protocol=_whole_file(monitor.protocol)),
    )


def _whole_folder(value: str | None) -> str | None:
    path = Path(expand_home(value or ""))
    return str(path.absolute()) if value and path.is_dir() else value


def _whole_file(value: str) -> str:
    path = Path(expand_home(value))
    return str(path.absolute()) if path.suffix in YAML_SUFFIXES and path.is_file() else value
