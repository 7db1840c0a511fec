"""Casbin policies for tools, at memory speed. Usable on its own; imports nothing else of Remit."""
