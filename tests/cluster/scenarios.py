"""What is done to a cluster of three hosts, and what has to hold. Each function is one scenario."""
