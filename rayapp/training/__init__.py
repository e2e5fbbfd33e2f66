"""Training with Ray Train, the item tower, and evaluation. Knows nothing of Serve."""

from rayapp.contracts.errors import RayappError


class TrainingError(RayappError):
    """Training can't go on; the message is for the person at the shell."""
