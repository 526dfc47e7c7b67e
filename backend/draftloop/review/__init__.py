"""Queues of tasks for humans: the next tasks to label, tasks sent back, samples to spot-check."""
