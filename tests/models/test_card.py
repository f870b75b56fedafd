"""The card beside a model: read back by the hub's own library, with what is known and nothing else."""

import json

from generation.sampled import SPEC, write_checkpoint
from huggingface_hub import ModelCard

from sparsevid.cli import run_tool
from sparsevid.models.transformer import DiffusionTransformer
from sparsevid.runs.config import load_config
from sparsevid.sparsity.cost import forward_macs, parameter_count

RECORD = {"metric": "FVD", "score": 12.5, "values": {"frechet": 12.5}, "protocol": {"name": "mine"},
          "protocol_fingerprint": "ab", "detector": {}, "real": None, "fake": {"clips": 7}, "warnings": [],
          "versions": {}}  # fmt: skip


def test_a_model_alone_has_a_card_of_its_spec_and_cost(tmp_path):
    DiffusionTransformer(SPEC).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "sparsevid" and "video-generation" in card.data.tags
    assert f"{parameter_count(SPEC) / 1e6:.2f} M" in card.text and f"{forward_macs(SPEC) / 1e9:.2f} G" in card.text
    assert f"`{SPEC.layout}`" in card.text and "from_pretrained" in card.text
    assert "## Training" not in card.text and "## Scores" not in card.text
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    DiffusionTransformer(SPEC).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


def test_an_exported_run_has_training_data_and_scores_on_its_card(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "run" / "checkpoints" / "step-0000001")
    (tmp_path / "run" / "scores").mkdir()
    (tmp_path / "run" / "scores" / "step-0000001.json").write_text(json.dumps(RECORD), encoding="utf-8")
    (tmp_path / "more.json").write_text(json.dumps(RECORD | {"score": 3.25}), encoding="utf-8")
    out = tmp_path / "exported"
    assert run_tool("convert", [str(checkpoint), str(out), "--scores", str(tmp_path / "more.json")]) == 0
    text, config = ModelCard.load(out / "README.md").text, load_config(checkpoint / "config.yaml")
    assert f"| objective | {config.objective.kind} |" in text and "## Data" in text
    assert f"| fingerprint (SHA-256) | {config.record.fingerprint or 'not recorded'} |" in text
    assert "| step-0000001 | FVD | 12.5000 | mine | ab | 7 |" in text and "| more.json | FVD | 3.2500 |" in text
    assert 'autoencoder="kl:FOLDER"' not in text and str(tmp_path) not in text
