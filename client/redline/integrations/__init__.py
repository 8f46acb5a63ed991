"""Token rewards into other frameworks' data structures: one module a framework, each imports its framework itself."""
