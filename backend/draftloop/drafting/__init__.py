"""The steps of a draft: caches, near-duplicates, examples, the model, rules, the score, the cascade."""
