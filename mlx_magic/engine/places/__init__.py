"""Places on an image, as values: boxes, points, and what their coordinates depend on."""
