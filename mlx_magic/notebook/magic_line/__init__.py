"""Parsing of a magic's line and body: arguments, commands, help."""
