"""Layouts, token grids, the token schedule over diffusion time (`times`) and their cost: pure Python and tensors, without any
nn.Module.

It imports nothing.
"""
