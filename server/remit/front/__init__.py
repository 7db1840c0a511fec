"""What faces the clients: strict decoding, identity at the door, and the MCP server itself."""
