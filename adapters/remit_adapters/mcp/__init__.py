"""The adapter for MCP servers: over stdio and streamable HTTP, revisions 2025-06-18 to 2026-07-28.

Importing this package loads neither the HTTP client nor the MCP SDK; a target brings what it needs when
it connects.
"""

from remit_adapters.mcp.adapter import Era, McpAdapter
from remit_adapters.mcp.exchange import Relay
from remit_adapters.mcp.targets import HttpTarget, StdioTarget

__all__ = ["Era", "HttpTarget", "McpAdapter", "Relay", "StdioTarget"]
