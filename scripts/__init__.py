"""Shell scripts, one for each experiment, and the benchmarks."""
