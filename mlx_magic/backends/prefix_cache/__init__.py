"""Prefix cache: keys and values of earlier prompts, for prompts that begin the same."""
