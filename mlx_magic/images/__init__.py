"""Anything a person has -> pixels."""
