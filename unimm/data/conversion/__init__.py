"""Records of a data set written in another format that people use."""
