"""A cluster of three hosts on one machine, and what it survives: `make test-cluster`."""
