"""A root directory: its places, its immutable directories, its logs, catalogue and rates as files."""
