"""Files of images, checked before Pillow works on them and decoded within limits."""
