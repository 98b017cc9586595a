"""Answers that follow a grammar: llguidance's tokenizer and matcher, and masks of logits."""
