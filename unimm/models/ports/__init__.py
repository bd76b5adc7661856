"""Ports, one a kind: the embedding of its elements and, where it can be predicted, its head and loss."""
