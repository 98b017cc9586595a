"""The models in memory: loading, sharing, evicting."""
