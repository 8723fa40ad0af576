"""The operators in C++ for CPUs: their Python side, and the sources in `csrc/`."""
