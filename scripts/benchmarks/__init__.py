"""What `scripts/bench` measures, one module per subject; every figure is a ratio within one run or a size."""
