"""Optimizers that PyTorch does not have in a form that an engine can take."""
