"""Places of an answer over the thumbnails of its images."""
