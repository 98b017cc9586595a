"""Models on disk and on the Hub."""
