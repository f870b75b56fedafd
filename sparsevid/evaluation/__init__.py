"""Evaluation in three steps: a detector turns clips into features, features go to a file, two files give a distance."""
