"""Frozen parts: where they are found, how they are fetched and checked; checkpoints of the original project."""
