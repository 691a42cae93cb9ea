"""The models that come with the package, one folder each: data only, no code.

`nano` holds configuration and weights, `7b` the configuration files of its published parts and no weights. Which
file means what is known to `nextgpt.hub.parts` and to the classes that load them.
"""
