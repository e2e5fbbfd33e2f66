"""The point-in-time window and the encoder: the one place where events become model inputs.

The pipeline and the server both call this package, so what is trained on is what is served. It knows no clock:
time is an argument.
"""
