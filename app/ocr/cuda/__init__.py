"""Kernels for CUDA and the modules made of them. Importing them needs Triton."""
