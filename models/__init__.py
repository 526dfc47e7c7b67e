"""The embedded demo model: its corpus, tokenizer and training. Nothing here is imported by the backend."""
