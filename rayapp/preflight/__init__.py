"""What must hold before a graph can run, looked up at once: each finding is one sentence and what to do about it."""
