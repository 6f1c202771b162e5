"""Decoders: feature maps in, object queries with classes and boxes out."""
