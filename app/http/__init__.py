"""HTTP: requests to nouns, nouns to answers."""
