"""`sparsevid prepare_data`: what a dataset's copy holds, what is wrong with it, and what training would see of it."""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from sparsevid.cli import add_card, check_file, check_least
from sparsevid.system.atomic import write_json
from sparsevid.system.logging import is_main, print_table, printable, progress

if TYPE_CHECKING:
    from sparsevid.data.clips import ClipDataset
    from sparsevid.data.tree.cards import Card
    from sparsevid.data.tree.clip_rule import ClipRule
    from sparsevid.data.tree.manifest import Manifest, Video

EXAMPLES = """examples:
  sparsevid prepare_data demo
  sparsevid prepare_data ucf101 --fold 2 --label-order sorted --json ucf101.json
  sparsevid prepare_data taichi_hd --root /data/taichi-png --out taichi.png --clips 24
  sparsevid prepare_data path/to/your.yaml --full-scan --strict
  sparsevid prepare_data ucf101 --root /data/part-of-ucf101 --card-option split.max_missing=1

What is found is kept, so that training and evaluation do not look again; it is done anew when files of the tree change.
A full scan decodes every frame: slow, and the only way to find damage inside a video before training does.
"""
ABSENT = "–"
MOST_CLIPS = 1000  # of a sheet: a picture of more is none that is looked at
SHOWN = 5  # classes, sizes, frame rates of a table; all are in the JSON file
LISTED_CLASSES = 12  # so many at most are listed each
WHOLE, FRAMES, CLASSES = "videos", "frames", "classes"  # counts that are of no split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the card, and how its tree is read."""
    parser.epilog = EXAMPLES
    add_card(parser)
    parser.add_argument("--full-scan", action="store_true", help="decode every frame; damaged videos are left out")
    parser.add_argument("--strict", action="store_true", help="end with status 2 if a video is damaged or cannot be used")
    parser.add_argument("--label-order", choices=("official", "sorted"), help="of the classes; default: the card's")
    parser.add_argument("--fold", type=int, metavar="N", help="which of the official divisions; default: the card's")
    parser.add_argument("--out", type=Path, metavar="FILE", help="contact sheet; default: <name of the card>.png here")
    parser.add_argument("--clips", type=int, default=12, metavar="N", help="clips of the contact sheet; 0: no sheet")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the run whose first clips are shown")
    parser.add_argument("--workers", type=int, metavar="N", help="how many videos are looked into at once; default: cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of the report too, every class and path")
    parser.add_argument("--rebuild", action="store_true", help="look into every video again, whatever is kept")


def run(args: argparse.Namespace) -> int:
    """Open the manifest, report on it, and write the contact sheet. Returns 0; failures raise."""
    from sparsevid.data.open import tree_rules
    from sparsevid.data.tree.cards import load_card, resolve_root
    from sparsevid.data.tree.manifest import manifest_path, open_manifest
    from sparsevid.system.distributed import init_process_group_if_launched

    card = load_card(args.card, args.card_option or ())
    sheet = args.out or Path(f"{card.name}.png")
    for option, path in (("--out", sheet), ("--json", args.json)):
        if path is not None:
            check_file(path, option)
    check_least(args, workers=1)
    if sheet.suffix.lower() != ".png":
        raise ValueError(f"--out {sheet}: a contact sheet is a PNG file")
    if not 0 <= args.clips <= MOST_CLIPS:
        raise ValueError(f"--clips {args.clips}: a contact sheet has from 0 to {MOST_CLIPS} clips")
    init_process_group_if_launched()
    root, rules = resolve_root(card, args.root), tree_rules(card, args.label_order, args.fold)
    options = {"strict": args.strict, "full_scan": args.full_scan, "rebuild": args.rebuild}
    manifest = open_manifest(root, rules, workers=args.workers, **options)
    if not is_main():
        return 0
    report = describe(card, manifest, rules.split.fold) | {"kept": str(manifest_path(root, rules))}
    print_report(report)
    if args.json is not None:
        write_json(args.json, report)
    if args.clips:
        try:
            write_sheet(sheet, card, manifest, args.clips, args.seed)
            print(f"contact sheet of the first {args.clips} clips of a run with seed {args.seed}: {sheet}")
        except ValueError as error:  # the report stands, whether or not a run with the card's own clips could start
            print(f"no contact sheet: {error}")
    return 0


def describe(card: "Card", manifest: "Manifest", fold: int = 1) -> dict:
    """All that is to be said of a copy of a dataset, as plain values.

    Args:
        card: what it should be.
        manifest: what it is.
        fold: the official division that it was read by.

    Returns:
        `card`, `root`, `fingerprint`; `counts`: name → found and expected, None where the card says nothing; `splits`:
        name → lengths, rates and sizes of its videos, "" for those in no split; `classes`: name → videos; `captions`: see
        `describe_captions`; `rejects`, `notes` and `others`: reason → paths.
    """
    rule, videos = card.clip.clip_rule(), manifest.videos
    by_split: dict[str, list[Video]] = {}
    for video in videos:
        by_split.setdefault(video.split or "", []).append(video)
    per_class = Counter(video.label for video in videos if video.label is not None)
    return {
        "card": {name: getattr(card, name) for name in ("name", "title", "source", "licence")},
        "root": str(manifest.root),
        "clip": {"frames": rule.frames, "stride": rule.stride, "rule": rule.rule, "span": rule.span, "short": rule.short},
        "counts": _counts(card.counts | card.fold_counts.get(str(fold), {}), manifest, by_split),
        "splits": {name: _describe_videos(group, rule) for name, group in sorted(by_split.items())},
        "classes": {name: per_class[label] for label, name in enumerate(manifest.classes)},
        "captions": describe_captions(card, manifest),
        "rejects": {reason: list(paths) for reason, paths in manifest.rejects.items()},
        "notes": {reason: list(paths) for reason, paths in manifest.notes.items()},
        "others": {reason: list(paths) for reason, paths in manifest.others.items()},
        "fingerprint": manifest.fingerprint,
    }


def describe_captions(card: "Card", manifest: "Manifest") -> dict | None:
    """What there is of captions; None for a card that says nothing of them.

    Returns:
        `files`: where they are looked for; `error`: why they cannot be read, or None, and then `captions`: how many different
        ones; `several`: videos with more than one; `missing`: paths of videos without; `notes`: remark → rows of tables.
    """
    from sparsevid.data.tree.captions import read_captions

    rules = card.captions.rules()
    if rules.rule == "none":
        return None
    report = {"rule": rules.rule, "files": list(rules.files), "error": None}
    try:
        found = read_captions(manifest, rules, required=False)
    except (FileNotFoundError, ValueError) as error:  # videos can be used without them
        return report | {"error": str(error)}
    several = sum(len(places) > 1 for places in found.places.values())
    notes = {remark: list(rows) for remark, rows in found.notes.items()}
    return report | {"captions": len(found.texts) - 1, "several": several, "missing": list(found.missing), "notes": notes}


def _counts(expected: Mapping[str, int], manifest: "Manifest", by_split: Mapping[str, Sequence]) -> dict[str, dict]:
    """Found and expected numbers: of all videos first, then of frames and classes, then of each split."""
    found = {WHOLE: len(manifest.videos), FRAMES: sum(video.frames for video in manifest.videos)}
    found |= {CLASSES: len(manifest.classes)} if manifest.classes else {}
    found |= {name: len(group) for name, group in sorted(by_split.items()) if name}
    names = dict.fromkeys([*found, *expected])
    return {name: {"found": found.get(name, 0), "expected": expected.get(name)} for name in names}


def _describe_videos(videos: Sequence["Video"], rule: "ClipRule") -> dict:
    """Number, lengths in frames, frame rates and sizes in pixels, each with how often it occurs."""
    from sparsevid.data.tree.clip_rule import counted_frames

    frames = [video.frames for video in videos]
    return {
        "videos": len(videos),
        "frames": {"min": min(frames), "median": median(frames), "max": max(frames), "sum": sum(frames)},
        "shorter_than_a_clip": sum(counted_frames(rule, video) < rule.span for video in videos),
        "fps": _frequencies(f"{video.fps:.4g}" for video in videos),
        "sizes": _frequencies(f"{video.width}×{video.height}" for video in videos),
    }


def _frequencies(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return dict(Counter(values).most_common())


def print_report(report: dict) -> None:
    """Print what `describe` says, as tables and sentences."""
    card = report["card"]
    rows = [[name, card[name]] for name in ("title", "source", "licence") if card[name]]
    rows += [[name, report[name]] for name in ("root", "fingerprint")] + [["manifest kept in", report["kept"]]]
    print_table(f"dataset {card['name']}", [], rows)
    _print_counts(report["counts"])
    _print_splits(report["splits"], report["clip"])
    if report["classes"]:
        _print_classes(report["classes"])
    if report["captions"] is not None:
        _print_captions(report["captions"])
    titles = {"left out": "rejects", "beside the videos, not read": "others", "to know": "notes"}
    for title, by_reason in ((title, report[name]) for title, name in titles.items()):
        if by_reason:
            rows = [[reason, str(len(paths)), paths[0]] for reason, paths in by_reason.items()]
            print_table(title, ["reason", "number", "example"], rows)
    left_out = sum(map(len, report["rejects"].values()))
    print(f"{report['counts'][WHOLE]['found']} videos can be used, {left_out or 'none'} left out")


def _print_counts(counts: Mapping[str, Mapping[str, int | None]]) -> None:
    if all(count["expected"] is None for count in counts.values()):  # your own card need not say how many there are
        print_table("counts", [], [[name, str(count["found"])] for name, count in counts.items()])
        return
    rows, incomplete = [], False
    for name, count in counts.items():
        found, expected = count["found"], count["expected"]
        difference = None if found is None or expected is None else found - expected
        incomplete = incomplete or bool(difference and difference < 0)
        rows.append([
            name,
            str(found),
            ABSENT if expected is None else str(expected),
            ABSENT if difference is None else f"{difference:+d}" if difference else "0",
            "differs" if difference else "",
        ])  # fmt: skip
    print_table("counts", ["of", "found", "expected", "difference", ""], rows)
    if incomplete:
        print(
            "This copy is not complete. Where a dataset is a list of links that vanish, everyone's copy differs: scores on "
            "other copies are not comparable with those on this one."
        )


def _print_splits(splits: Mapping[str, Mapping], clip: Mapping) -> None:
    columns = ["split", "videos", "shortest", "median", "longest", f"under {clip['span']}", "frames a second", "width×height"]
    rows = [
        [
            name or "(none)",
            str(split["videos"]),
            *(f"{split['frames'][which]:g}" for which in ("min", "median", "max")),
            str(split["shorter_than_a_clip"]),
            _most_frequent(split["fps"]),
            _most_frequent(split["sizes"]),
        ]
        for name, split in splits.items()
    ]
    spans = f"its {clip['frames']} frames at stride {clip['stride']} span {clip['span']}"
    print_table("videos; lengths in frames", columns, rows, f"under {clip['span']}: too short for a clip, {spans}")
    short = sum(split["shorter_than_a_clip"] for split in splits.values())
    if short:
        what = f"{short} videos are shorter than the {clip['span']} frames that a clip spans"
        print(f"{what}; the card's clip.short is {clip['short']} (clip.frames, clip.stride and clip.short decide).")


def _print_classes(classes: Mapping[str, int]) -> None:
    names = list(classes)
    if len(names) <= LISTED_CLASSES:
        print_table("videos of each class", [], [[f"{label} {name}", str(classes[name])] for label, name in enumerate(names)])
        return
    smallest, largest = min(classes, key=classes.__getitem__), max(classes, key=classes.__getitem__)
    first = ", ".join(f"{label} {name}" for label, name in enumerate(names[:SHOWN])) + (", …" if len(names) > SHOWN else "")
    rows = [
        ["number", str(len(names))],
        ["without a video", str(sum(not count for count in classes.values()))],
        ["smallest", f"{smallest}: {classes[smallest]} videos"],
        ["largest", f"{largest}: {classes[largest]} videos"],
        ["first", first],
    ]
    print_table("classes", [], rows)


def _print_captions(captions: Mapping) -> None:
    rows = [["looked for in", ", ".join(captions["files"])]]
    if captions["error"] is not None:
        rows.append(["cannot be read", captions["error"]])
    else:
        missing = captions["missing"]
        rows += [["different ones", str(captions["captions"])], ["videos with several", str(captions["several"])]]
        rows.append(["videos without", str(len(missing)) + (f", such as {missing[0]}" if missing else "")])
        rows += [[remark, f"{len(found)}, such as {found[0]}"] for remark, found in captions["notes"].items()]
    print_table("captions", [], rows)


def _most_frequent(counts: Mapping[str, int]) -> str:
    shown = [f"{value} ({count})" for value, count in list(counts.items())[:SHOWN]]
    return "\n".join(shown + ([f"{len(counts) - SHOWN} more"] if len(counts) > SHOWN else []))


def open_clips(card: "Card", manifest: "Manifest", seed: int) -> "ClipDataset":
    """The clips that training takes unless its config says otherwise: the card's split, clip rule, size and flip."""
    from sparsevid.data.clips import ClipDataset
    from sparsevid.data.sources import VideoFrames

    clip = card.clip
    source = VideoFrames(manifest.root, (clip.size[0], clip.size[1]))
    videos = manifest.select(card.split.default if card.split.default in manifest.splits else None)
    return ClipDataset(videos, clip.clip_rule(), source, flip=clip.flip, seed=seed, images=clip.images)


def write_sheet(path: Path, card: "Card", manifest: "Manifest", clips: int, seed: int) -> None:
    """Write the first clips that a training run of this seed sees as a PNG, each under its class, path and first frame.

    Raises:
        ValueError: no video is as long as a clip.
        DecodeError: a video cannot be decoded.
    """
    from sparsevid.data.loader import SampleOrder
    from sparsevid.videos.sheets import legible_scale, write_contact_sheet

    dataset = open_clips(card, manifest, seed)
    order = SampleOrder(len(dataset), seed)
    samples = [dataset[order[position]] for position in progress(range(clips), desc="contact sheet", unit="clip", delay=2)]
    captions = []
    for sample in samples:
        video = dataset.videos[sample["video"]]
        words = [] if video.label is None else [f"{video.label} {manifest.classes[video.label]}"]
        captions.append(printable(", ".join([*words, video.path, f"from frame {sample['start']}"])))
    write_contact_sheet(path, [sample["clip"] for sample in samples], captions, scale=legible_scale(*card.clip.size))
