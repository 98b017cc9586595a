"""Images from URLs, fetched from the public internet only."""
