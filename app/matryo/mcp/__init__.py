"""The MCP door: tools for assistants over `service`, by the Model Context Protocol's own SDK."""
