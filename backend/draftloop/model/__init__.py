"""The door to vLLM and to tokenizers.

vllm.py      the client: prompts to completions          adapters.py         adapters for a running server
server.py    HTTP, and what its errors mean              probe.py            what is served and can be written
scoring.py   log-probabilities to scores                 control_tokens.py   texts that are one token
tokens.py    conversations as a model's tokens
"""
