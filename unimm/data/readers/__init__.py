"""Files that users bring, as data sets."""
