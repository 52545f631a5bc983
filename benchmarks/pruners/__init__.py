"""Compare RTPrune with other pruners on the pages and weights that the accuracy benchmark uses."""
