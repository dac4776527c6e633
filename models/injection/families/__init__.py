"""Which HF class is which block: one file for each family, with a class for each of HF's under its own name."""
