"""What was made, as HTML: clips of the two sides in pairs, with cost and time. All text that comes from outside is escaped."""

import base64
import html
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from sparsevid.system.logging import printable
from sparsevid.ui.comparison import Made, likeness
from sparsevid.videos.write import write_clip

MEDIA = {"mp4": "video/mp4", "png": "image/png"}
SHOWN_SIDE = 192  # pixels: a smaller clip is enlarged to about as many
# Gradio puts a value into a template; these begin what a template would take for its own.
TEMPLATE_SIGNS = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;", "\\": "&#92;"})


def text(words: object) -> str:
    """Anything as text in HTML."""
    return html.escape(printable(str(words))).translate(TEMPLATE_SIGNS)


def shown(sides: Sequence[Made]) -> str:
    """One or two sides: what each cost, then their clips, sample by sample.

    Args:
        sides: A, or A and B.
    """
    heads = "".join(_head(letter, made) for letter, made in zip("AB", sides, strict=False))
    media = [_media(made) for made in sides]
    rows = []
    for index in range(max(map(len, media))):
        pair = "".join(
            f'<div class="sv-clip sv-{letter.lower()}"><b>{letter}</b>{clips[index]}</div>'
            for letter, clips in zip("AB", media, strict=False)
            if index < len(clips)
        )
        names = dict.fromkeys(made.captions[index] for made in sides if index < len(made.captions))
        caption = f"{index} · {' | '.join(map(text, names))}" if names else str(index)
        rows.append(f'<figure><div class="sv-pair">{pair}</div><figcaption>{caption}</figcaption></figure>')
    clips = f'<div class="sv-clips">{"".join(rows)}</div>'
    return f'<div class="sv-made"><div class="sv-heads">{heads}</div>{_against(sides)}{clips}</div>'


def message(words: object, kind: str = "error") -> str:
    """A message in place of clips: `error` or `note`."""
    return f'<div class="sv-{kind}" role="{"alert" if kind == "error" else "status"}">{text(words)}</div>'


def _head(letter: str, made: Made) -> str:
    sampling = made.sampling
    settings = [f"{sampling.steps} steps of {sampling.sampler}", f"guidance {sampling.guidance:g}"]
    settings += [f"schedule {sampling.schedule}", *sampling.savings]
    facts = {"multiply–adds a clip": f"{made.macs / 1e9:.4g} G", "of the dense model": f"{made.macs / made.dense_macs:.2f}"}
    facts["a clip, denoised"] = f"{made.seconds:.3g} s"
    if sampling.savings:
        facts["of the layers computed"] = f"{made.share:.0%}"
    values = "".join(f"<div><dd>{text(value)}</dd><dt>{text(name)}</dt></div>" for name, value in facts.items())
    title = f"<h3><b>{letter}</b> {text(made.side.model)}</h3><p>{text(' · '.join(settings))}</p>"
    return f'<section class="sv-head sv-{letter.lower()}">{title}<dl>{values}</dl></section>'


def _against(sides: Sequence[Made]) -> str:
    if len(sides) < 2:
        return ""
    one, other = sides
    words = f"B takes {other.macs / one.macs:.2f} of A's multiply–adds and {other.seconds / one.seconds:.2f} of its time"
    alike = likeness(one, other)
    if one.clips.shape != other.clips.shape:
        words += "; their clips have other sizes, and so other noise"
    elif alike is not None:
        words += "; the clips are the same" if alike == float("inf") else f"; PSNR of its clips to A's: {alike:.1f} dB"
    return f'<p class="sv-against">{text(words)}.</p>'


def _media(made: Made) -> list[str]:
    """Each clip as an element that holds it."""
    return [_element(clip, made.fps) for clip in made.clips]


def _element(clip: Tensor, fps: float) -> str:
    kind = "png" if clip.shape[1] == 1 else "mp4"
    scale = max(1, SHOWN_SIDE // min(clip.shape[2:]))  # MP4 halves the sides of colours, which shows in few pixels
    clip = clip.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    with tempfile.TemporaryDirectory() as folder:
        data = base64.b64encode(write_clip(Path(folder) / "clip", clip, fps, kind).read_bytes()).decode("ascii")
    source = f"data:{MEDIA[kind]};base64,{data}"
    if kind == "png":
        return f'<img alt="" src="{source}">'
    return f'<video muted loop playsinline preload="auto" src="{source}"></video>'
