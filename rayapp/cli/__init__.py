"""The command line: composition only. Nothing of the product imports this package."""
