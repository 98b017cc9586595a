"""A folder with a model, judged before a library reads it."""
