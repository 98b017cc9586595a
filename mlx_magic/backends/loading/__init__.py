"""Loading of weights, in slices and without running a checkpoint's own code."""
