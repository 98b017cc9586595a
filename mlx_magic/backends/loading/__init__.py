"""From files to weights in memory, in slices and without a checkpoint's own code."""
