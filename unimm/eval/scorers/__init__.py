"""Scorers: answers and what is right in, numbers out. No model, no files: a task asks them, and so can a program of its own."""
