"""The training of the demo's models: tokenizer, trainer, figures."""
