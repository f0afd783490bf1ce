"""The meta index: what this machine remembers of stores, in one SQLite file."""
