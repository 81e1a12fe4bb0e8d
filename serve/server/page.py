"""GET /: the chat page, one file that needs nothing else and may ask nothing but its own server."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

router = APIRouter()

_FILE = Path(__file__).with_name("page.html")


def page_response(status: int = 200) -> Response:
    """The page; it is the same for everybody, and holds nothing of the model or the server."""
    content, policy = _page()
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Response(content, status, headers, "text/html")


def is_page_request(scope: Scope) -> bool:
    """Whether somebody opens the page in a browser; programs do not ask for HTML."""
    return (
        scope["path"] == "/"
        and scope["method"] in ("GET", "HEAD")
        and "text/html" in Headers(scope=scope).get("accept", "")
    )


@cache
def _page() -> tuple[bytes, str]:
    """The file, and a policy with which a browser runs its own script and style, and loads nothing from elsewhere.

    https://www.w3.org/TR/CSP3/
    """
    content = _FILE.read_bytes()
    script, style = (_hashes(tag, content) for tag in ("script", "style"))
    return content, (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(tag: str, content: bytes) -> str:
    found = re.findall(b"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), content, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'" for part in found)


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """A page to chat with the model."""
    return page_response()
