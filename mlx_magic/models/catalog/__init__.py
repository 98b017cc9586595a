"""The names of models, and what there is under them."""
