"""Data from a stronger model: seeds → requests → answers → rules → conversations to train on."""
