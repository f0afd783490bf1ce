"""`make bench`: OurDB beside what people would use instead, measured in the same run."""
