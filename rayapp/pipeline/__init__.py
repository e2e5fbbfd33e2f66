"""Ray Data jobs between the log and training: bucketed logs, windows, item tables; and the reader of windows.

Knows no ranker and nothing of Serve.
"""
