"""The command line: composition only. Nothing imports this package."""
