"""Functions of a Unity Catalog server as tools.

https://docs.unitycatalog.io/usage/functions/: `GET /api/2.1/unity-catalog/functions/{name}` tells the
parameters of a function, whose name is `catalog.schema.function`.
"""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from ...runtime.errors import RequestError
from .errors import HTTPError

TIMEOUT = 10.0  # seconds
MAX_BYTES = 1 << 20  # of a function's description
_NAME = re.compile(r"[\w-]{1,255}\.[\w-]{1,255}\.[\w-]{1,255}")

# JSON schema of Unity Catalog's column types; other types are texts that say how they are written.
_TYPES = {
    "BOOLEAN": "boolean",
    "BYTE": "integer",
    "SHORT": "integer",
    "INT": "integer",
    "LONG": "integer",
    "FLOAT": "number",
    "DOUBLE": "number",
    "DECIMAL": "number",
    "ARRAY": "array",
    "STRUCT": "object",
    "MAP": "object",
}


def function_tool(server: str, name: str) -> dict[str, Any]:
    """The tool for a function of a catalog server, asked there; its name has `__` where the function's has dots.

    Raises RequestError for a function that is not there, HTTPError 502 when the server does not answer as it should.
    """
    if not _NAME.fullmatch(name):
        raise RequestError(f"uc_function {name[:200]!r}: expected catalog.schema.function", param="tools",
                           code="invalid_value")  # fmt: skip
    found = _fetch(server, name)
    try:
        parameters = (found.get("input_params") or {}).get("parameters") or []
        properties = {parameter["name"]: _schema(parameter) for parameter in parameters}
        required = [parameter["name"] for parameter in parameters if parameter.get("parameter_default") is None]
    except (AttributeError, KeyError, TypeError):
        raise _bad_gateway(f"describes {name} in a way that is not understood") from None
    schema = {"type": "object", "properties": properties, "required": required}
    function = {"name": name.replace(".", "__"), "description": found.get("comment") or "", "parameters": schema}
    return {"type": "function", "function": function}


def _schema(parameter: dict[str, Any]) -> dict[str, Any]:
    kind = parameter.get("type_name")
    schema = {"type": _TYPES.get(str(kind), "string")}
    written = "" if str(kind) in (*_TYPES, "STRING") else str(parameter.get("type_text") or kind)
    description = " ".join(filter(None, (parameter.get("comment"), written and f"({written})")))
    return {**schema, "description": description} if description else schema


def _fetch(server: str, name: str) -> dict[str, Any]:
    address = f"{server.rstrip('/')}/api/2.1/unity-catalog/functions/{urllib.parse.quote(name)}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            body = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            message = f"uc_function {name!r} is not in the catalog"
            raise RequestError(message, param="tools", code="invalid_value") from None
        raise _bad_gateway(f"answered {error.code} for {name}") from None
    except OSError:
        raise _bad_gateway("cannot be reached") from None
    try:
        found = json.loads(body) if len(body) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _bad_gateway(f"describes {name} in a way that is not understood")
    return found


def _bad_gateway(what: str) -> HTTPError:
    return HTTPError(502, f"the Unity Catalog server {what}", "unity_catalog", "server_error")
