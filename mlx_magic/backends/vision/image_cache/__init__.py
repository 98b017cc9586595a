"""What was made of an image, kept for the next question about it."""
