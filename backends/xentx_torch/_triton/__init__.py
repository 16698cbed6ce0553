"""Triton under PyTorch, for tensors on CUDA and ROCm devices.

`_kernels` has the formula, `_launch` gives it tensors, `_adapter` is the engine: what it takes, and
its autograd. Triton is imported with the first loss that it computes.
"""
