"""Learning from preferences: several answers to a prompt, which of them is better, and models that prefer the better."""
