"""`python -m xdoge` is the command line."""

from xdoge.cli import main

main()
