"""Asking services elsewhere over HTTP: by no proxy of this machine, with no redirection, and not for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2


@asynccontextmanager
async def asking(
    failure: Callable[[str], Exception], *, timeout_s: float
) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client for what is asked within. Raises TimeoutError, and `failure` where it cannot be reached."""
    import httpx2

    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx2.AsyncClient(trust_env=False, follow_redirects=False) as client,
        ):
            yield client
    except httpx2.TimeoutException:
        raise TimeoutError from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise failure(f"it cannot be reached: {str(error) or 'it broke off'}") from None
