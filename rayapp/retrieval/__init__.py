"""Fetches items worth ranking: candidate sources over one item table. Without Ray, HTTP or a ranker."""
