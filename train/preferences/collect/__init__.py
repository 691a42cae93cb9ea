"""Collecting preferences: several answers to each prompt, and who says which of two is better."""
