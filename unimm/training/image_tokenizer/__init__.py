"""The training of image tokenizers: its trainer, losses, adversary and metrics."""
