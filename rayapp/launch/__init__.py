"""Starts Ray and the Serve graph on this machine."""
