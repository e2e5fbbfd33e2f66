"""Measurements that the documentation cites. Composition only: nothing but the command line imports this package."""
