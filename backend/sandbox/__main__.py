"""`python -m backend.sandbox`: the server."""

from backend.sandbox.server import main

main()
