"""The parts of scripts/demo: texts that are extracted and labelled, and tasks that are answered with code."""
