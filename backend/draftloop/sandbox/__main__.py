"""`python -m draftloop.sandbox`: the server."""

from draftloop.sandbox.server import main

main()
