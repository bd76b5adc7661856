"""The engine and what it is made of."""
