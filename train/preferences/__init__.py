"""Learning from preferences and rewards: pairs of answers, the losses, and the runs that learn by them."""
