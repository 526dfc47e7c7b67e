"""One outside system per file; its library is imported nowhere else."""
