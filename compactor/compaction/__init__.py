"""A compaction: which segments become one, what of them is protected, and the run that publishes it."""
