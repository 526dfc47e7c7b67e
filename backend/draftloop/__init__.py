"""A Label Studio ML backend: drafts by vLLM, corrected by humans, exported as datasets."""
