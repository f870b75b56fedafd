"""What configs and records of before say of what is said otherwise now."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsevid.models.presets import PRESETS
from sparsevid.savings.options import parse_saving


def brought_forward(values: DictConfig) -> DictConfig:
    """A file of a run's settings as it is written now: `sample.reuse_every: 2` was the saving `steps:every=2`."""
    plain: Any = OmegaConf.to_container(values)
    sample = plain.get("sample")
    if not isinstance(sample, dict):
        return values  # what is wrong in it is said elsewhere
    every = sample.get("reuse_every")
    if not isinstance(every, int) or every < 1 or "savings" in sample:
        return values
    del sample["reuse_every"]
    sample["savings"] = [] if _is_dense(plain.get("model")) else savings_of_reuse(every)
    return OmegaConf.create(plain)


def _is_dense(model: Any) -> bool:
    """Whether the section is of a model without sparse layers, as far as it says: reuse was passed over there."""
    section = model if isinstance(model, dict) else {}
    preset = PRESETS.get(str(section.get("preset")))
    layout = section.get("layout") or (preset.layout if preset is not None else None)
    return isinstance(layout, str) and not set(layout) & set("MSR")


def savings_of_reuse(every: int) -> list[str]:
    """Savings that compute sparse layers at every n-th call, as step reuse did; none for 1."""
    return [str(parse_saving(f"steps:every={every}"))] if every > 1 else []
