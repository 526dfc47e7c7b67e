"""Files to tasks: rows are read, checked and completed with what is known of their input files."""
