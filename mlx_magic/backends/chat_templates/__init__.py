"""From messages to the text of a prompt, by a template that is not trusted."""
