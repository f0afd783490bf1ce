"""Reading a database where it is stored, without restoring it."""
