"""A package outside of unimm that adds one of each: data set, view, projector, port, quantizer, objective and evaluation task.

Its YAML lies in ../conf; nothing in unimm knows of it.
"""
