"""Data sets in shards that may grow, or are too large to be counted: read shard by shard, in an order that is found again."""
