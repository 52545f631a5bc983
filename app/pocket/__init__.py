"""The checkpoint that ships with the package, and the reader and page layout that go with it."""
