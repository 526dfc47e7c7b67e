"""What humans look at next and again: queues, spot checks, the least certain tasks."""
