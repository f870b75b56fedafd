"""The card of a model: README.md beside its weights, as the hub shows it."""

from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCard, ModelCardData

from sparsevid.sparsity.cost import forward_macs, parameter_count
from sparsevid.sparsity.spec import ModelSpec

TAGS = ["diffusion", "video-generation"]
SAMPLING = """```python
from sparsevid import VideoPipeline

pipeline = VideoPipeline.from_pretrained("FOLDER_OR_HUB_ID"){note}
clips = pipeline(num=4)  # uint8 (4, 3, T, H, W)
pipeline.save(clips, "samples")
```

or `sparsevid sample FOLDER_OR_HUB_ID --num 4 --out samples`."""
ALONE = '  # of a model alone: autoencoder="kl:FOLDER"'


def model_card(spec: ModelSpec, sections: Mapping[str, str] | None = None, *, whole: bool = False) -> ModelCard:
    """The card of a model.

    Args:
        spec: of the model.
        sections: what else is known, Markdown by heading: training, data, scores. What is not known is not said.
        whole: the folder has what goes with the model, config.yaml and autoencoder.

    Returns:
        The card; `save` writes it. Its licence is left out, for it is that of the data and of who trained.
    """
    data = ModelCardData(library_name="sparsevid", tags=TAGS)
    dense, macs = forward_macs(spec.dense()), forward_macs(spec)
    rows = [
        ("layout", f"`{spec.layout}`"),
        ("parameters", f"{parameter_count(spec) / 1e6:.2f} M"),
        ("channels of a token, heads", f"{spec.hidden_size}, {spec.num_heads}"),
        ("latents: channels × frames × height × width", " × ".join(map(str, (spec.in_channels, *spec.input_size)))),
        ("classes", str(spec.num_classes or "none")),
        ("tokens of a clip", str(spec.dense_grid().tokens)),
    ]
    cost = [("multiply–adds of a forward of one clip", f"{macs / 1e9:.2f} G")]
    if spec.sparse_grid is not None:
        rows.append(("default sparse grid", "×".join(map(str, spec.sparse_grid))))
        cost.append(("… of the dense model of its size", f"{dense / 1e9:.2f} G"))
        cost.append(("ratio", f"{macs / dense:.3f}"))
    parts = {"Model": markdown_table(("what", ""), rows), "Cost": markdown_table(("what", ""), cost), **(sections or {})}
    parts["How to sample"] = SAMPLING.format(note="" if whole else ALONE)
    opening = (
        "A diffusion transformer for video, made with sparsevid. Its layers P, M, S, R and D pool, merge tokens, work on "
        "sparse ones, recover the others, and are dense."
    )
    body = "\n\n".join([opening, *(f"## {heading}\n\n{text}" for heading, text in parts.items())])
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {spec.layout}, {spec.hidden_size} channels\n\n{body}\n")


def markdown_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown; bars in cells are spelled out."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
