"""Models that fit themselves: fitted with a library, applied with NumPy alone; one family per file."""
