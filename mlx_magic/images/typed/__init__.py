"""Text that a person typed or pasted: names of files, base64."""
