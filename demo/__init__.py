"""The demo: its models, their texts and training, its projects. The product does not import it."""
