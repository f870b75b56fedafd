"""Layouts, token grids, the token schedule and their cost: pure Python and tensors, without any nn.Module.

It imports nothing.
"""
