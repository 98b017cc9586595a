"""Batched decoding of several requests, and admission by memory."""
