"""What the panel knows, as plain data."""
