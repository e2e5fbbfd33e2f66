"""Models and item tables on disk, and the aliases that say which model is live. No Ray."""
