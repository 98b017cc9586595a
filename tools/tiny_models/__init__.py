"""Make tiny checkpoints with random weights, one for each architecture that tests need."""
