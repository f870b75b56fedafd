"""One command that shows a GPU's whole picture: what is right there, how fast it is, and what it costs.

`parent` gives each part of `parts.PARTS` a process and a time of its own, and keeps `report` written; it imports no PyTorch.
The modules that parts are named after measure, and yield a `parts.Row` for each thing that they found.
"""
