"""Data sets that a program makes, clip by clip and the same on every machine: `sparsevid make_data`.

`base` is what a set says of itself, `folder` writes any of them; each set is a module of its name with its class as `SET`.
"""

MADE = {"atari": "twelve games of the Atari 2600, played at random in the emulator of ale-py: twelve classes"}
