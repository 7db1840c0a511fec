"""Remit: an MCP server between AI agents and an enterprise's tools."""

__version__ = "0.1.0"
