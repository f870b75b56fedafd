"""Text in and numbers out: encoders of text, and networks that look at text and pictures, all of `transformers`.

No other room imports that library, and here it is imported when it is first used. `clip` is CLIP, for scores of prompts.

It imports `system`.
"""
