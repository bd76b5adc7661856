"""A look at data before it is learned from: counts, lengths, what is cut or refused, broken files, near-duplicates."""
