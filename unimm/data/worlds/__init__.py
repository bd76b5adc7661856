"""Data sets that make their own images: shapes and digits."""
