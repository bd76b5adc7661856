"""One module a kind: how it is embedded, and how its next element is predicted."""
