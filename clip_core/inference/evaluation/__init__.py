"""Evaluation of any Encoder on labelled images or on image-text pairs: `clip-infer evaluate`."""
