"""The commands of learning from preferences. The work is done in `nextgpt.train.preferences`."""
