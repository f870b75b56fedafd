"""`python -m sparsevid.cli`: the console command without its script, as launchers start it."""

from sparsevid.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
