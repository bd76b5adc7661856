"""`unimm doctor`: readings of the machine, its page, and the process that asks torch."""
