"""The checkpoint that ships with the package, and how it reads pages: weights, reader, layout."""
