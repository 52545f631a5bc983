"""RTPrune: shorten DeepSeek-OCR's visual sequence once, between projector and decoder."""
