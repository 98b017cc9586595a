"""Decoders of formats that Pillow decodes slowly, uninterruptibly, in part, or not at all."""
