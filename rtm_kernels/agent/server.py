"""The MCP server of the tools, and the two ways it is reached."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations
from pydantic import ConfigDict, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

import rtm_kernels
from rtm_kernels.access import Token, check_address, is_loopback
from rtm_kernels.agent.limits import MAX_BODY, MAX_CONNECTIONS, MAX_HEADERS, MAX_SESSIONS, STREAM
from rtm_kernels.agent.solvers import Solvers
from rtm_kernels.agent.tools import Tools
from rtm_kernels.errors import RTMError, printable
from rtm_kernels.serve.connection import connection_class
from rtm_kernels.serve.limits import Limits
from rtm_kernels.serve.refusal import new_id, refuse, unauthorized

NAME = "rtm"
PATH = "/mcp"
INSTRUCTIONS = (
    "Solves constraint puzzles with small recursive models. An answer is proven only where `verified` is true; "
    "report anything else as an unconfirmed candidate."
)
READ_ONLY = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)


class Server(MCPServer):
    """An MCP server whose refusals name the argument, and show nothing else of the caller's or of this machine."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None) -> Any:
        """See `MCPServer.call_tool`."""
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(f"{name}: {explained(error.__cause__)}") from error.__cause__
            if isinstance(error.__cause__, RTMError):
                raise ToolError(f"{name}: {error.__cause__}") from error.__cause__
            raise


def explained(error: ValidationError) -> str:
    """Each argument at fault and what is wrong with it, on one line, at most five."""
    found = error.errors(include_url=False, include_input=False)
    parts = [f"{'.'.join(map(str, e['loc']))[:80] or 'arguments'}: {e['msg']}" for e in found[:5]]
    more = [f"{len(found) - 5} more faults"] if len(found) > 5 else []
    return printable("; ".join(parts + more))


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


class TokenGuard:
    """Lets a request through that carries the token, and answers any other with 401."""

    def __init__(self, app: ASGIApp, token: Token) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan" or self._token.opens(scope["headers"]):
            await self._app(scope, receive, send)
        else:
            await refuse(send, unauthorized(), new_id())


def http_app(server: Server, host: str, token: Token | None) -> ASGIApp:
    """The streamable HTTP application, behind the token where there is one."""
    security = None if is_loopback(host) else TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(
        streamable_http_path=PATH, max_request_body_size=MAX_BODY, max_sessions=MAX_SESSIONS,
        transport_security=security, host=host,
    )  # fmt: skip
    return app if token is None else TokenGuard(app, token)


def serve_stdio(server: Server) -> None:
    """Serve one client over standard input and output, until it closes them."""
    server.run("stdio")


def http_config(server: Server, host: str, port: int, token: Token | None) -> uvicorn.Config:
    """How uvicorn serves it, with the limits of `limits`.

    Errors: `InputError` for an address other than loopback without a token.
    """
    check_address(host, token)
    limits = Limits(connections=MAX_CONNECTIONS, header_block=MAX_HEADERS, request=STREAM)
    return uvicorn.Config(
        http_app(server, host, token), host=host, port=port, log_level="warning", http=connection_class(limits),
        timeout_keep_alive=10, h11_max_incomplete_event_size=MAX_HEADERS, timeout_graceful_shutdown=5, ws="none",
        server_header=False,
    )  # fmt: skip


def serve_http(server: Server, host: str, port: int, token: Token | None) -> None:
    """Serve over HTTP until interrupted; says on standard error where. Errors: as `http_config`."""
    config = http_config(server, host, port, token)
    with config.bind_socket() as bound:
        address = bound.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        print(f"listening on http://{shown}:{address[1]}{PATH}", file=sys.stderr, flush=True)
        uvicorn.Server(config).run(sockets=[bound])
