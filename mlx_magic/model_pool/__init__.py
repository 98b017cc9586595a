"""Models in memory: loading, sharing, eviction."""
