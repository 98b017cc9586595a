"""Rendering of messages to a prompt by chat templates, which are not trusted."""
