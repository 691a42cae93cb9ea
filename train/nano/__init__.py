"""The making of the nano model: its world, its frozen parts, its dialogues. Seven small commands and one that runs them."""
