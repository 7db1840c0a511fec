"""What the benchmarks start and measure: the processes, each a program of its own in this package."""
