"""What is seen of the panel."""
