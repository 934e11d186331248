"""From tensors to the pointers of `pyssl_fast._cuda`."""
