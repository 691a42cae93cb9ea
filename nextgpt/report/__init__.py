"""Reports on an installation, a model or a training run, without loading weights."""
