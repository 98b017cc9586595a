"""One question, or several, about each of many images."""
