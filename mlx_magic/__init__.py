"""Vision-language models that live in your notebook kernel."""
