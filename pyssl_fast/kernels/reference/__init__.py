"""Plain PyTorch twins: any dtype, any device. The truth in tests, the baseline in benchmarks."""
