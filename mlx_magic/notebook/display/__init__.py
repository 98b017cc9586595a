"""Display of answers and tables in a notebook and in a terminal."""
