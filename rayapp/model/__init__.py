"""The ranker in PyTorch: encoder, crossing, heads, item tower, and the scorer that serves them.

Tensors in, tensors out. It knows neither Ray nor where anything is stored.
"""
