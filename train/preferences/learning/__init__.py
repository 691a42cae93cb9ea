"""Runs that learn from pairs of answers or from rewards: the losses, what is learned from, the trainers."""
