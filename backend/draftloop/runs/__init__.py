"""A run of code, as both sides of the sandbox see it. No I/O."""
