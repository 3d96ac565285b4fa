"""Export an encoder for other libraries, with a model card."""
