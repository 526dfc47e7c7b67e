"""The command line `draftloop`: a verb reads options, makes one call, and prints what came of it."""
