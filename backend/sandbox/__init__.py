"""Code that was written by a model, run in a process and an environment of its own."""
