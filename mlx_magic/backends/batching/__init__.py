"""Requests that are answered together, and the memory they wait for."""
