"""Answers as data: schemas, choices, places on an image, and maps over many images."""
