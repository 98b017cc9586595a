"""Answers that are given, as they would stand in a conversation."""
