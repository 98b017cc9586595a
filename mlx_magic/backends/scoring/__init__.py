"""Score given answers: how probable each is as the whole answer to a question."""
