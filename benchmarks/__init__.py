"""Speed, accuracy and load. The last line each prints is one JSON document."""
