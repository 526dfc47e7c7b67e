"""The Python verbs, run by scripts/launch in the environment that each needs."""
