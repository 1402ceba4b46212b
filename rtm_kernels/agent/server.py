"""The MCP server of the tools; over HTTP it runs behind the middleware of `rtm serve`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations
from pydantic import ConfigDict, ValidationError

import rtm_kernels
from rtm_kernels.access import Token, is_loopback
from rtm_kernels.agent.solvers import Solvers
from rtm_kernels.agent.tools import Tools
from rtm_kernels.errors import RTMError
from rtm_kernels.serve.guard import Guard
from rtm_kernels.serve.schema import Limits, explained

LIMITS = Limits(body=1 << 20, request=3600.0)  # a stream to a client is cut after an hour; it opens another one
MAX_SESSIONS = 256
NAME = "rtm"
PATH = "/mcp"
INSTRUCTIONS = (
    "Solves constraint puzzles with small recursive models. An answer is proven only where `verified` is true; "
    "report anything else as an unconfirmed candidate."
)
READ_ONLY = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)


class Server(MCPServer):
    """An MCP server whose errors name the argument, and show no path, trace or input."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None) -> Any:
        """See `MCPServer.call_tool`."""
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(f"{name}: {explained(error.__cause__.errors(include_url=False))}") from error.__cause__
            if isinstance(error.__cause__, RTMError):
                raise ToolError(f"{name}: {error.__cause__}") from error.__cause__
            raise


def tool(function: Callable[..., Any]) -> Tool:
    """`function` as a read-only tool that refuses unknown arguments."""
    made = Tool.from_function(function, annotations=READ_ONLY)
    arguments = made.fn_metadata.arg_model
    arguments.model_config = ConfigDict(**{**arguments.model_config, "extra": "forbid"})
    arguments.model_rebuild(force=True)
    made.parameters = arguments.model_json_schema(by_alias=True)
    return made


def build(solvers: Solvers) -> Server:
    """The server with its four tools."""
    tools = Tools(solvers)
    functions = (tools.solve_sudoku, tools.solve_maze, tools.solve_arc_candidates, tools.list_models)
    made = [tool(function) for function in functions]
    return Server(NAME, instructions=INSTRUCTIONS, version=rtm_kernels.__version__, tools=made, log_level="WARNING")


def http_app(server: Server, host: str, token: Token | None) -> Guard:
    """The streamable HTTP application behind the guard of `rtm serve`."""
    security = None if is_loopback(host) else TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(
        streamable_http_path=PATH, max_sessions=MAX_SESSIONS, transport_security=security, host=host
    )
    return Guard(app, LIMITS, token)
