"""On-disk formats of what was computed of a data set's images: codes, features. `unimm.precompute` fills them."""
