"""The decode-only forward of a Llama-shaped trunk, and its linear layers with int8 or int4 weights."""
