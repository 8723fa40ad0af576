"""The operators in Triton for NVIDIA GPUs: launchers here, kernels in the modules that need triton."""
