"""`sparsevid encode_captions` as a script."""

from sparsevid.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("encode_captions"))
