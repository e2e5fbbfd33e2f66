"""What trains a root's models: a first training, retraining that can be left alone, the gates before a model goes live,
and the daily watch."""
