"""Kernels for CUDA and the modules made of them. Importing them takes Triton, a part of torch for CUDA."""
