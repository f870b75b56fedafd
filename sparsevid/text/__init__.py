"""Captions and prompts into what a model of text hears: features of their tokens, and which tokens are there.

`encoder` is T5 of transformers, which is imported there alone and when it is needed; `cache` keeps what it gives of a data
set's captions, and `write` writes that, so that training needs no T5.

It imports `system`.
"""
