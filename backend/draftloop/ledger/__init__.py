"""State that outlives a process and is shared by workers."""
