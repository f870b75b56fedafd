"""Weights of other models as ours: public checkpoints (`public`), and sparse models from dense ones (`dense_to_sparse`)."""
