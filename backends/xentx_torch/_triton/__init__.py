"""Triton under PyTorch, for tensors on CUDA and ROCm devices.

`_kernels` has the formula, `_launch` calls the kernels with tensors, and `_adapter` is the engine:
which losses it computes, and its autograd. Triton is imported with the first loss that it computes.
"""
