"""The contracts: one file an op, each with the signature, the variants and sample calls to judge its kernels by."""
