"""A package, so that its conftest and its tests have names of their own beside those of tests/."""
