"""Places in answers: the dialects in which models write them, and boxes in pixels."""
