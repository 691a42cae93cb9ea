"""A reward model: a score of an answer, learned from pairs (Bradley-Terry)."""
