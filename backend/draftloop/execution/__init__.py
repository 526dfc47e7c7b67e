"""Scripts of drafts run in the sandbox: attempts, input files, artifacts, and what people see of a run."""
