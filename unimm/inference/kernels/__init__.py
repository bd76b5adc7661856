"""The trunk arranged for decoding: one position of every row at a time."""
