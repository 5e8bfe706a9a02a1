"""`python -m dagseal`: the same as the command `dagseal`."""

from dagseal.cli.app import main

main()
