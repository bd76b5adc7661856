"""`unimm bench`: a module for each command, and `app`, which declares them."""
