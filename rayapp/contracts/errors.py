"""The root of all errors that a person can act on. The command line prints them in one sentence; others are bugs."""


class RayappError(Exception):
    """Something a person can put right; the message says what is wrong, where, and what to do about it."""
