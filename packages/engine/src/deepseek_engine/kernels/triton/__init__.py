"""One operation a file, beside its slow twin in `kernels/reference`; for CUDA devices, or the interpreter."""
