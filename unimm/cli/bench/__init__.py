"""`unimm bench`: one command a benchmark; what each does is in `unimm.bench`."""
