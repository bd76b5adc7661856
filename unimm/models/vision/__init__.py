"""The vision tower and the projectors that carry its features into the trunk."""
