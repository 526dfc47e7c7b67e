"""Generated code: its sandbox, and the loop that leads to it, each a process and an environment of its own.

The sandbox runs code and hands back files; it sees nothing of ours but `draftloop.runs.job` and the
errors. docs/explanation/sandbox.md says what it covers.
`interpreter.py` is Open Interpreter's loop, which runs nothing itself.
"""
