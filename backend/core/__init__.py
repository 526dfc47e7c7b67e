"""The law of this folder: no I/O, no clock, no randomness, no HTTP, no Flask, no subprocess."""
