"""The journal of maps: answers on disk, by the content of what was asked."""
