"""The segment format: a pure codec of data files and segments (docs/format.md). No I/O."""
