"""Methods that prune inside the decoder, measured offline by masks: the service does not serve them."""
