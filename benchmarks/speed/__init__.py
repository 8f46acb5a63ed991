"""Parts of the speed benchmarks: workloads, backends, load generator, statistics and tables."""
