"""Clients of a served feed."""
