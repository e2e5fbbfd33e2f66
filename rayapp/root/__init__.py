"""A root directory: its places, its immutable directories, its logs, catalogue and agreed steps as files."""
