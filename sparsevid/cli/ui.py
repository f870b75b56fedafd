"""`sparsevid ui`: a page that samples models and sets two ways side by side."""

import argparse
import threading

from sparsevid.cli import add_model_options
from sparsevid.system.logging import get_logger

EXAMPLES = """examples:
  sparsevid ui runs/demo/sparse
  sparsevid ui runs/dense runs/sparse models/exported --port 8000
  ssh -L 7860:localhost:7860 MACHINE sparsevid ui runs/ucf101/sparse --port 7860     # from another machine

It needs Gradio: pip install 'sparsevid[ui]'. Nothing is sent anywhere, and no other machine reaches the page.
"""
LOCAL = "127.0.0.1"
logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    models = (
        "runs' folders, checkpoints, exported folders, hub ids or converted models; A begins with the first, B with the second"
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help=models)
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    host = "address to listen at; with another than this, all who reach it may sample, and nobody is asked who they are"
    parser.add_argument("--host", default=LOCAL, help=host)
    encoder = "T5 that encodes prompts of models of text: a folder or a hub id. Default: what the model's config names"
    parser.add_argument("--text-encoder", metavar="SOURCE", help=encoder)
    add_model_options(parser, "the GPU where there is one", dtype="the models compute", whose="the models'")


def run(args: argparse.Namespace) -> int:
    from sparsevid.system.distributed import check_device
    from sparsevid.ui.clicks import Clicks
    from sparsevid.ui.models import Models
    from sparsevid.ui.page import load_gradio, serve

    load_gradio()  # raises before models are read
    if args.port is not None and not 0 < args.port < 65536:
        raise ValueError(f"--port is 1 to 65535, got {args.port}")
    device = None if args.device is None else check_device(args.device)
    loading = {name: getattr(args, name) for name in ("weights", "autoencoder", "text_encoder", "dtype")}
    models = Models(args.models, device=device, **loading)
    page = serve(Clicks(models), args.host, args.port)
    if args.host not in (LOCAL, "localhost"):
        logger.warning("whoever reaches %s may sample here", args.host)
    logger.info("%s shows the page; Ctrl-C ends it", page.local_url)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close()
    return 0
