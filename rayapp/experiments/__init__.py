"""What an experiment did: counted from the logs, reported with intervals by user, stopped when a guardrail is crossed.

`moments` and `collect` count; `effects`, `sequential` and `sample_ratio` are the statistics; `decision` and `report`
put them together.
"""
