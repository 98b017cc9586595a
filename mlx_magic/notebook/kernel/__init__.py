"""How a running cell shares its kernel with clicks, interrupts and other cells."""
