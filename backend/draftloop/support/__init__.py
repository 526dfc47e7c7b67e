"""Small things that every package may use; they import nothing of ours but the errors."""
