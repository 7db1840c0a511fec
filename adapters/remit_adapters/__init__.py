"""Adapters: the code that speaks to one kind of source. Nothing here knows about policy or records."""
