"""The panel: the same engine and pool as the cells, by mouse."""
