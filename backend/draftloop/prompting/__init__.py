"""A case, its folder, and its prompt."""
