"""Maps in a notebook: the cell, its view, and the table that stays."""
