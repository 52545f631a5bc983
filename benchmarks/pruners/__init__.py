"""RTPrune's rivals on the pages and weights that accuracy is measured on."""
