"""Importers of checkpoints that others have published; docs/importing.md has the layouts.

`reading` turns an untrusted file into tensors by name, `layouts` those into a network and parameters of ours, `convert` both into
a weights file with a card, and `command` is the command line of it.
"""
