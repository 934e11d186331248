"""Matrix-shaped GPU kernels, written in Triton: one file per family, and the table of their tile shapes."""
