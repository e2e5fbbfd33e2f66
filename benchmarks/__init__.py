"""Measurements that the documentation cites, run from a checkout: no part of what is installed."""
