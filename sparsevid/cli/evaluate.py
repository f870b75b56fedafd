"""`sparsevid evaluate`: a score of generated videos against real ones, in one go or step by step."""

import argparse
import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from sparsevid.cli import add_card_option, add_json_flag, all_ranks
from sparsevid.cli.evaluations.arguments import (
    KEEP,
    add_detector_arguments,
    add_measuring_arguments,
    built_detector,
    check_folder,
    check_output,
    chosen_protocol,
    detector_options,
    measuring,
    video_source,
)
from sparsevid.evaluation.protocols import list_protocols
from sparsevid.evaluation.record import ProtocolRecord, load_record
from sparsevid.system.logging import get_logger, is_main, print_json, print_table

EXAMPLES = """examples:
  sparsevid evaluate score --real ucf101 --fake samples --protocol stylegan-v/fvd2048_16f
  torchrun --nproc_per_node 8 tools/evaluate.py score --real ucf101 --fake samples --protocol stylegan-v/fvd2048_16f

  images as ADM's evaluator takes them, and its reference files:
  sparsevid evaluate score --real VIRTUAL_imagenet256_labeled.npz --fake samples.npz --protocol adm/fid-50k

options and examples of an action: sparsevid evaluate ACTION --help
"""
OF_ACTIONS = {
    "score": """examples:
  sparsevid evaluate score --real ucf101 --fake samples --protocol stylegan-v/fvd2048_16f
  sparsevid evaluate score --real demo --fake samples --detector transnetv2 --bootstrap 200 --plot
  sparsevid evaluate score --fake samples --protocol sparsevid/clip-score-v1 --detector-path clip-vit-large-patch14
""",
    "features": """examples:
  sparsevid evaluate features --source demo --role real --detector transnetv2 --out real.safetensors
  sparsevid evaluate features --source samples --role fake --detector transnetv2 --out fake.safetensors
""",
    "distance": """examples:
  sparsevid evaluate distance --real real.safetensors --fake fake.safetensors
  sparsevid evaluate distance --real real.safetensors --fake fake.safetensors --bootstrap 200 --out score.json
""",
    "selftest": """examples:
  sparsevid evaluate selftest
  sparsevid evaluate selftest --detector i3d-torchscript --detector-path i3d_torchscript.pt
""",
    "protocols": """examples:
  sparsevid evaluate protocols
  sparsevid evaluate protocols latte/ucf101 --json
""",
}
RECORD_NAME = "score.json"
ACTIONS = ("sensitivity", "effects", "likeness", "reference", "prompts")  # modules of `evaluations`

logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str, examples: str) -> argparse.ArgumentParser:
        said = f"{text[0].upper()}{text[1:]}."
        return actions.add_parser(name, help=text, description=said, epilog=examples, formatter_class=parser.formatter_class)

    score = action("score", "videos against videos", OF_ACTIONS["score"])
    score.add_argument(
        "--real", metavar="CARD_OR_DIR", help="real videos: a card, a folder or a reference file; an IS needs none"
    )
    add_card_option(score)
    score.add_argument("--fake", metavar="DIR", type=Path, help="generated videos, or an .npz of images", required=True)
    add_measuring_arguments(score)
    score.add_argument("--repeats", metavar="N", type=int, default=1, help="draws of clips; the score is their mean")
    prompts = "what the generated clips were to show, a prompt a line, for scores of that; default: as their samples.json says"
    score.add_argument("--prompts", metavar="FILE", type=Path, help=prompts)
    score.add_argument("--keep", metavar="DIR", type=Path, help=KEEP)
    score.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help=f"write the record here (.json); default: FAKE/{RECORD_NAME}, or FAKE.score.json",
    )
    score.add_argument("--plot", metavar="DIR", nargs="?", const="", help="draw pictures; default folder: FAKE-score")
    _add_reporting_arguments(score)

    features = action("features", "videos to a feature file", OF_ACTIONS["features"])
    features.add_argument("--source", metavar="CARD_OR_DIR", help="videos: a dataset card, or a folder", required=True)
    add_card_option(features)
    features.add_argument("--role", choices=("real", "fake"), help="which clip rule of the protocol", required=True)
    features.add_argument("--out", metavar="FILE", type=Path, help="feature file to write (.safetensors)", required=True)
    features.add_argument("--split", help="of real videos, where the protocol reports several")
    features.add_argument("--seed", type=int, help="of the draw of clips; default: the protocol's")
    add_measuring_arguments(features)

    distance = action("distance", "two feature files to a score", OF_ACTIONS["distance"])
    distance.add_argument("--real", metavar="FILE", type=Path, help="features of real clips; an IS needs none")
    distance.add_argument("--fake", metavar="FILE", type=Path, help="features of generated clips", required=True)
    distance.add_argument("--out", metavar="FILE", type=Path, help="write the record here (.json)")
    _add_reporting_arguments(distance)

    selftest = action("selftest", "known values of the distance, and of a detector", OF_ACTIONS["selftest"])
    add_detector_arguments(selftest)

    protocols = action("protocols", "list the protocols, or all fields of one", OF_ACTIONS["protocols"])
    for each in (selftest, protocols):
        add_json_flag(each)
    protocols.add_argument("name", metavar="NAME", nargs="?", help="a protocol, or a YAML file")

    for name in ACTIONS:
        module = import_module(f"sparsevid.cli.evaluations.{name}")
        module.add_arguments(action(name, module.HELP, module.EXAMPLES))


def run(args: argparse.Namespace) -> int:
    """Run the sub-command that `args.action` names. Returns its exit status; failures raise."""
    actions = {
        "score": _score,
        "features": _features,
        "distance": _distance,
        "selftest": _selftest,
        "protocols": _protocols,
    }
    action = actions.get(args.action) or import_module(f"sparsevid.cli.evaluations.{args.action}").run
    with all_ranks(getattr(args, "device", None)):  # not every action computes
        return action(args)


def _add_reporting_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bootstrap", metavar="N", type=int, default=0, help="an interval for the score from N resamplings")
    parser.add_argument("--extrapolate", action="store_true", help="fit the score against 1/clips, for its limit")
    add_json_flag(parser, "print JSON in place of the table: the whole record")


def _score(args: argparse.Namespace) -> int:
    from sparsevid.evaluation.evaluate import Extras, measure

    if not args.fake.is_dir() and not (args.fake.is_file() and args.fake.suffix.lower() == ".npz"):
        raise FileNotFoundError(
            f"--fake is a folder of generated videos, or an .npz of images: there is no such folder or file {args.fake}"
        )
    if args.keep is not None:
        check_folder(args.keep)
    path = args.out or (args.fake / RECORD_NAME if args.fake.is_dir() else args.fake.with_suffix(".score.json"))
    try:
        check_output(path, ".json")
    except OSError as error:
        if args.out is None:
            raise OSError(f"{error}: write the score elsewhere, with --out FILE.json") from error
        raise
    pictures = None if args.plot is None else _picture_folder(args.plot, args.fake)
    extras = Extras(args.repeats, args.bootstrap, extrapolate=args.extrapolate, pictures=args.plot is not None)
    measured = measure(
        video_source(args, args.real), args.fake, protocol=chosen_protocol(args), count=args.count, batch_size=args.batch,
        device=args.device, detector_path=args.detector_path, trust_detector=args.trust_detector, extras=extras, keep=args.keep,
        prompts=args.prompts,
    )  # fmt: skip
    _report(measured.record, args.json)
    if is_main():
        if path.exists():
            _tell_of_older(path)
        measured.record.save(path)
        logger.info("record: %s", path.absolute())
        if pictures is not None:
            from sparsevid.evaluation.pictures import write_pictures

            for picture in write_pictures(measured, pictures):
                logger.info("%s", picture)
    return 0


def _picture_folder(plot: str, fake: Path) -> Path:
    """Where pictures go: beside the generated videos, not below them, where a folder of pictures would be one more video."""
    from sparsevid.evaluation.plot import check_can_draw

    check_can_draw()
    fake = fake.resolve()
    folder = Path(plot).resolve() if plot else fake.with_name(f"{fake.name}-score")
    if folder.is_relative_to(fake):
        raise ValueError(f"--plot {folder} lies in the folder of generated videos {fake}, and would be taken for one of them")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--plot is a folder, {folder} is a file")
    return folder


def _tell_of_older(path: Path) -> None:
    """Say which score is replaced."""
    try:
        older = load_record(path)
    except ValueError as error:
        logger.warning("%s is replaced; it is no score that can be read: %s", path, error)
        return
    logger.info("%s: replaces %s %.4f by protocol %s", path, older.metric, older.score, _protocol_name(older))


def _features(args: argparse.Namespace) -> int:
    from sparsevid.evaluation.evaluate import extract_features

    if args.role == "fake" and args.split is not None:
        raise ValueError("--split is a part of real videos, generated ones (--role fake) have none")
    check_output(args.out, ".safetensors", makes_folders=True)
    detector, protocol = measuring(args)
    file = extract_features(
        video_source(args, args.source), args.role, detector, protocol,
        limit=args.count, seed=args.seed, split=args.split, batch_size=args.batch, out=args.out,
    )  # fmt: skip
    logger.info("%d clips, %d features each, in %s", *file.features.shape, args.out)
    return 0


def _distance(args: argparse.Namespace) -> int:
    from sparsevid.evaluation.evaluate import Extras, compare_features
    from sparsevid.evaluation.features import load_features

    extras = Extras(bootstrap=args.bootstrap, extrapolate=args.extrapolate)
    if args.out is not None:
        check_output(args.out, ".json")
    real = None if args.real is None else load_features(args.real)
    record = compare_features(real, load_features(args.fake), extras)
    _report(record, args.json)
    if args.out is not None and is_main():
        record.save(args.out)
    return 0


def _selftest(args: argparse.Namespace) -> int:
    """0 if all checks pass, else 1."""
    from sparsevid.evaluation.selftest import GOLDEN, detector_checks, golden_checks, synthetic_checks

    if args.detector is None and (args.detector_path is not None or args.trust_detector or args.detector_option):
        raise ValueError("--detector-path, --detector-option and --trust-detector are about a --detector, which is not given")
    checks = synthetic_checks()
    if args.detector is not None:
        golden, options = GOLDEN.get(args.detector), detector_options(args)
        detector = built_detector(args, args.detector, {**(golden.options if golden else {}), **options})
        checks += detector_checks(detector)
        if golden is not None and all(detector.settings[name] == value for name, value in golden.options.items()):
            checks += golden_checks(golden, detector)
        elif golden is not None:
            logger.warning("the published values are for %s: they are not computed", dict(golden.options))
    status = 0 if all(each.passed for each in checks) else 1
    if args.json:
        print_json([{**asdict(each), "passed": each.passed} for each in checks])
        return status
    rows = [
        [each.name, f"{each.expected:.8g}", f"{each.found:.8g}", f"{each.tolerance:.1g}", "pass" if each.passed else "FAIL"]
        for each in checks
    ]
    print_table("self-test", ["check", "expected", "found", "tolerance", "result"], rows)
    return status


def _protocols(args: argparse.Namespace) -> int:
    from sparsevid.evaluation.protocols import load_protocol

    if args.json:
        chosen = [load_protocol(name) for name in ([args.name] if args.name else list_protocols())]
        print_json([{**each.as_dict(), "fingerprint": each.fingerprint} for each in chosen])
        return 0
    if args.name is not None:
        protocol = load_protocol(args.name)
        rows = [[name, json.dumps(value)] for name, value in protocol.as_dict().items()]
        print_table(f"{protocol.name}, SHA-256 {protocol.fingerprint}", ["field", "value"], rows)
        return 0
    rows = []
    for each in map(load_protocol, list_protocols()):
        counts = ["all" if count is None else str(count) for count in (each.real_count, each.fake_count)]
        strides = f"{each.real_stride}, {each.fake_stride}"
        rows.append(
            [each.name, each.detector, ", ".join(each.metrics), str(each.frames), strides, ", ".join(counts), each.split]
        )
    columns = ["protocol", "detector", "metrics", "frames", "strides real, fake", "clips real, fake", "split"]
    print_table("protocols", columns, rows)
    return 0


def _report(record: ProtocolRecord, as_json: bool) -> None:
    if as_json:
        print_json(record.as_dict())
        return
    rows = [row for each in (record, *record.other_splits) for row in _rows(each)]
    columns = ["metric", "score", "real clips", "fake clips", "split", "protocol"]
    kind = "a CLIP score" if record.prompts else "an Inception score"
    title = f"{kind}: higher is better" if record.real is None else "a Fréchet or kernel distance: lower is better"
    print_table(title, columns, rows)


def _rows(record: ProtocolRecord) -> list[list[str]]:
    """A record's values, each with its name and spread, and what they depend on."""
    facts = [
        "" if record.real is None else str(record.real["clips"]),
        str(record.fake["clips"]),
        record.split or "",
        _protocol_name(record),
    ]
    rows = []
    for position, (name, value) in enumerate(record.values.items()):
        spread = "" if record.deviations is None else f" ± {record.deviations[name]:.4f}"
        rows.append([record.metric if position == 0 else name, f"{value:.4f}{spread}", *facts])
    if record.interval is not None:
        ends = f"{record.interval['low']:.4f} … {record.interval['high']:.4f}"
        rows.append([f"  {record.interval['level']:.0%} interval", ends, "", "", "", ""])
    if record.extrapolation is not None:
        limit = f"{record.extrapolation['value']:.4f} ± {record.extrapolation['error']:.4f}"
        reliable = "" if record.extrapolation["reliable"] else " (not reliable)"
        rows.append([f"  for N → ∞{reliable}", limit, "", "", "", ""])
    return rows


def _protocol_name(record: ProtocolRecord) -> str:
    return "none" if record.protocol is None else record.protocol["name"]
