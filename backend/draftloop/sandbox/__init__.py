"""Generated code: its sandbox and its conversation loop, each a process in an environment of its own.

The sandbox runs code and returns files; it imports only `draftloop.runs`, `draftloop.support` and the errors.
docs/explanation/sandbox.md says what it covers.
`interpreter.py` is Open Interpreter's loop, which runs nothing itself.
"""
