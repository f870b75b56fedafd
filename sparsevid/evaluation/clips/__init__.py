"""The clips that a protocol takes from a source: what is drawn (`choice`), by which rules (`clips`), and reading it."""
