"""Model names, and the models that they refer to."""
