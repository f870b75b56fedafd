"""What videos a folder holds: a card or rules and a folder come in, a manifest of videos with classes and splits goes out.

`walk` finds files, `probing` opens them, `findings` keeps what was found, `rules` and `lists` sort videos into classes and
splits, `cards` and `clip_rule` are what a data set says of itself. Nothing here knows of runs.

It imports `videos` and `system`.
"""
