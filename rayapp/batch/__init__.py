"""Batch scoring: the model, features and code of the live graph over files of pairs or users, as of a moment."""
