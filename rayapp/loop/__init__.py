"""Retraining that can be left alone: what to train on, the gates before a model goes live, the daily watch."""
