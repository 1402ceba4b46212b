"""The solver as tools of an agent: an MCP server over stdio or streamable HTTP (extra `mcp`)."""
