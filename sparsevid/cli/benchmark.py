"""`sparsevid benchmark`: lists and runs the actions, each a module of `benchmarks`."""

import argparse
from importlib import import_module

from sparsevid.cli import check_file
from sparsevid.system.atomic import write_json
from sparsevid.system.logging import is_main

EXAMPLES = "options and examples of an action: sparsevid benchmark ACTION --help"
ACTIONS = ("model", "data", "training", "sampling", "savings", "distance", "decoders", "evaluator", "gpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name in ACTIONS:
        module = import_module(f"sparsevid.cli.benchmarks.{name}")
        texts = {"help": module.HELP, "description": module.HELP, "epilog": module.EXAMPLES}
        module.add_arguments(actions.add_parser(name, formatter_class=parser.formatter_class, **texts))


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, and write the JSON file if one is named.

    Returns:
        0, or 1 if what was measured is checked too, and not as it should be; other failures raise.
    """
    from sparsevid.system.precision import set_float32

    set_float32(getattr(args, "tf32", False))
    path = getattr(args, "json", None)
    if path is not None:
        check_file(path, "--json")
    values = import_module(f"sparsevid.cli.benchmarks.{args.action}").measure(args)
    if is_main() and path is not None:
        write_json(path, values)
    return 0 if values.get("passed", True) else 1
