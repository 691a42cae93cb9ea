"""Training: the three stages, their data, and the cache of frozen features."""
