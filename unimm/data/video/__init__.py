"""Videos as frames with times: how clips are read, which of their frames are shown, and how example clips are written."""
