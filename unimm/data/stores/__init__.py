"""What was computed of a data set's images and lies on disk: codes, features."""
