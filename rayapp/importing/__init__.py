"""A team's files -> the logs, the catalogue and the users of a root."""
