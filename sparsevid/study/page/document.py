"""The page: what there is to show, in the order in which it is looked at."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import torch
from PIL import Image

from sparsevid import __version__
from sparsevid.study.effects import differences, ratio
from sparsevid.study.measurements import REAL, StudyResults, read_studies
from sparsevid.study.page.clips import ShownClips, clips_of, encode, lines_of, sprite, trimmed, wall
from sparsevid.study.page.markup import Markup, element, together
from sparsevid.study.page.numbers import signed
from sparsevid.study.page.rows import RowStyles
from sparsevid.study.page.run_folder import CONFIG, METRICS, Run, is_run, read_run
from sparsevid.study.page.scatter import scatter
from sparsevid.study.page.sections import runs_part, study_parts
from sparsevid.system.atomic import renamed, write_text
from sparsevid.system.logging import get_logger
from sparsevid.videos.sheets import clip_grid

PAGE = "index.html"
RESULTS_SUFFIX = ".jsonl"
CLIP_BYTES = 3_000_000  # of all clips together, in base64
MOST_LINES = 12  # of clips
FPS = 8.0  # of clips in pictures
PARTS = {"clips": "clips", "quality": "cost and quality", "time": "over time", "tables": "tables", "run": "what was run"}
logger = get_logger(__name__)


@dataclass(frozen=True)
class Sources:
    """What the page is of: studies, runs, and a sentence for each thing that could not be read."""

    studies: Sequence[StudyResults]
    runs: Sequence[Run]
    problems: list[str]


def write_page(paths: Sequence[Path], out: Path, *, lines: int = MOST_LINES) -> Sources:
    """Write the page of some results and runs.

    Args:
        paths: files of results and folders of runs.
        out: folder, made if it is missing; `index.html` in it is replaced.
        lines: classes of which clips are shown, at most; 0 shows none.

    Returns:
        What is on it.

    Raises:
        ValueError: a path is neither, or there is nothing in any of them.
        OSError: a file cannot be read or written.
    """
    if lines < 0:
        raise ValueError(f"{lines} classes of clips: a number from 0 is wanted")
    sources = read_sources(paths)
    page = build_page(sources, lines)
    for problem in sources.problems:
        logger.warning("%s", problem)
    write_text(out / PAGE, page)
    return sources


def write_pictures(studies: Sequence[StudyResults], out: Path, *, columns: int = 5) -> list[Path]:
    """Write plot and clips of studies as files of their own, for documents.

    Args:
        studies: as `read_sources` gives them.
        out: folder, made if it is missing.
        columns: classes of which clips are shown.

    Returns:
        For each study `NAME.svg`, cost against distance, and `NAME.webp`, clips of the same noise beside each other: of real
        videos, of the control, and of the first row that is compared with it; neither where there is nothing to show.

    Raises:
        OSError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    style, written = files(__package__).joinpath("page.css").read_text(encoding="utf-8"), []
    for study in studies:
        called = re.sub(r"[^\w.-]|^\.", "_", study.name)  # the name is any text
        drawn = scatter(study, RowStyles([*study.rows, REAL]), "macs", "distance", differences(study)["distance"], style)
        if drawn is not None:
            written.append(out / f"{called}.svg")
            write_text(written[-1], f"{drawn}\n")
        shown = {each.row: each for each in clips_of(study, [])}
        compared = next((row for row in study.rows if study.control(row) in shown and row in shown), None)
        rows = [shown[row] for row in (REAL, study.control(compared), compared) if row in shown] if compared else []
        if rows:
            lines = lines_of(rows, columns)
            clips = [torch.from_numpy(each.clips[each.keys.index(key)]) for each in rows for key in lines]
            written.append(out / f"{called}.webp")
            grid = clip_grid(clips, len(lines), scale=2, names=[each.row for each in rows])
            frames = [Image.fromarray(frame) for frame in grid.permute(1, 2, 3, 0).numpy()]
            with renamed(written[-1]) as draft:
                frames[0].save(
                    draft, "WEBP", save_all=True, append_images=frames[1:], duration=round(1000 / FPS), loop=0, quality=70
                )
    return written


def read_sources(paths: Sequence[Path]) -> Sources:
    """Read what some paths hold. See `write_page`."""
    results, folders = [], []
    for path in dict.fromkeys(paths):
        if is_run(path):
            folders.append(path)
        elif path.is_file() and path.suffix == RESULTS_SUFFIX:
            results.append(path)
        else:
            raise ValueError(
                f"{path} {'is neither' if path.exists() else 'is not there'}; accepted are a study's results, such as "
                f"docs/study/paper{RESULTS_SUFFIX}, and the folder of a run, with {CONFIG} or {METRICS} in it"
            )
    studies, problems = read_studies(results)
    runs = [read_run(folder, problems) for folder in folders]
    _tell_apart(runs)
    if not studies and not runs:
        raise ValueError("; ".join([f"{', '.join(map(str, paths))}: there is no line of results to show", *problems]))
    return Sources(studies, runs, problems)


def build_page(sources: Sources, lines: int = MOST_LINES) -> str:
    """The page as HTML. What cannot be shown is added to `sources.problems`."""
    styles = RowStyles([row for study in sources.studies for row in [*study.rows, REAL]] + [run.name for run in sources.runs])
    shown = {study.name: clips_of(study, sources.problems) if lines else [] for study in sources.studies}
    walls = _walls(sources.studies, shown, lines, styles)
    parts = [study_parts(each, f"study-{n}", styles, walls.get(each.name)) for n, each in enumerate(sources.studies)]
    if sources.runs:
        parts.append(runs_part(sources.runs, styles))
    body = (_bar(sources), element("main", _problems(sources.problems), parts), _footer(sources))
    return _filled(", ".join([study.name for study in sources.studies] or [run.name for run in sources.runs]), body)


def _filled(title: str, body: Sequence[Markup]) -> str:
    """The page's template with all that stands in it. Its script alone may run: the policy in it has its hash."""
    own = files(__package__)
    template, style, script = (own.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {"style": style, "script": script, "hash": digest, "generator": f"sparsevid {__version__}"}
    return Template(template).substitute(values, title=together([f"{title} – sparsevid"]), body=together(body))


def _tell_apart(runs: Sequence[Run]) -> None:
    """Runs of one name are called by as much of their folders' paths as it takes."""
    parts = [run.folder.absolute().parts for run in runs]
    for run, own in zip(runs, parts, strict=True):
        depths = range(1, len(own) + 1)
        depth = next((n for n in depths if sum(other[-n:] == own[-n:] for other in parts) == 1), len(own))
        run.name = "/".join(own[-depth:])


def _bar(sources: Sources) -> Markup:
    if len(sources.studies) == 1:
        links = [element("a", title, href=f"#study-0-{name}") for name, title in PARTS.items()]
    else:
        links = [element("a", study.name, href=f"#study-{number}") for number, study in enumerate(sources.studies)]
    if sources.runs:
        links.append(element("a", "runs", href="#runs"))
    nav = element("nav", links, aria_label="parts of the page")
    inside = (element("b", "sparsevid"), nav, element("button", "Dark", type="button", id="theme"))
    return element("div", element("div", inside, class_="top"), class_="bar-top")


def _problems(problems: Sequence[str]) -> Markup | None:
    if not problems:
        return None
    listed = element("ul", [element("li", each) for each in problems])
    return element("details", element("summary", f"Left out: {len(problems)}"), listed, class_="problems")


def _footer(sources: Sources) -> Markup:
    paths = [str(path) for study in sources.studies for path in study.sources] + [str(run.folder) for run in sources.runs]
    return element("footer", f"Made by sparsevid {__version__} from ", ", ".join(dict.fromkeys(paths)), ".")


def _walls(
    studies: Sequence[StudyResults], shown: Mapping[str, list[ShownClips]], most: int, styles: RowStyles
) -> dict[str, Markup]:
    """The clips of each study that has any, all within one budget of bytes."""
    lines = {name: lines_of(each, most) for name, each in shown.items()}
    kept = {name: [trimmed(each, lines[name]) for each in found] for name, found in shown.items()}
    pictures = {(name, each.row): sprite(each.clips) for name, found in kept.items() for each in found if len(each.clips)}
    uris, quality = encode(pictures, CLIP_BYTES)
    called = {key: f"sprite-{number}" for number, key in enumerate(pictures)}
    walls = {}
    for study in studies:
        clips = [each for each in kept[study.name] if len(each.clips)]
        if not clips:
            continue
        own = {each.row: (called[study.name, each.row], uris[study.name, each.row]) for each in clips}
        captions = {each.row: _caption(study, each) for each in clips}
        said = "Pixels as they were made." if quality is None else f"Pixels kept by WebP of quality {quality}."
        left_out = len(lines_of(shown[study.name], None)) - len(lines[study.name])
        said += f" {left_out} more classes are not shown (--clips)." if left_out else ""
        drawn = wall(study.name, clips, lines[study.name], own, styles, captions)
        walls[study.name] = together([drawn, element("p", said, class_="note")])
    return walls


def _caption(study: StudyResults, each: ShownClips) -> str:
    if each.row == REAL:
        return "held-out clips"
    control = study.control(each.row)
    share = ratio(study.of(each.row), study.of(control), "macs") if control is not None else None
    return f"seed {each.seed}" + (f" · {signed(share, 2)}× cost" if share is not None else "")
