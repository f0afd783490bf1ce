"""A restore: which point, along which segments, into which files."""
