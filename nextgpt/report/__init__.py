"""What can be said of an installation, a model or a run without using it."""
