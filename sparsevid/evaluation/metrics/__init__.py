"""Distances and other scores of features (N,D), float64, their uncertainty, and the table of those that protocols name."""
