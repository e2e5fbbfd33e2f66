"""Training with Ray Train, the item tower, and evaluation. Knows nothing of Serve."""
