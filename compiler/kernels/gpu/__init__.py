"""Kernels for devices that run workgroups of threads: CUDA, ROCm, Metal, Vulkan, OpenCL."""
