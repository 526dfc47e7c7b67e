"""The sandbox: a process and an environment of its own that runs generated code and hands back files.

Sees nothing of ours but `backend.core.execution` and the errors. docs/sandbox.md says what it covers.
"""
