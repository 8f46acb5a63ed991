"""Parts of the speed benchmarks: backends, workloads, load generator, reports."""
