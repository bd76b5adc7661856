"""Data sets through a frozen network, once: images to stored codes, images to stored features."""
