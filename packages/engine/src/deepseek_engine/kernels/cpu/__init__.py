"""Kernels in C for processors with AVX-512, BF16 and VNNI instructions; `library.load()` says whether they can run."""
