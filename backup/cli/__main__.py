"""`python -m backup.cli` is `ourdb`."""

from backup.cli import main

main()
