"""The kernels: one folder per backend, one file per family, the same function names and signatures in every folder."""
