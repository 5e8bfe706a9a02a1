"""The command line. Results go to stdout, progress and errors to stderr; secrets never come from argv.

Start-up is part of the promise: modules here import the standard library and typer at the top, everything else where a
command needs it.
"""
