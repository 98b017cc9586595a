"""Running cells in the kernel: clicks, interrupts, awaiting, completion."""
