"""The door to vLLM and to tokenizers."""
